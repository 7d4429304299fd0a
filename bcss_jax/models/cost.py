"""Floating-point operations of a network, counted in its lowered program."""

import jax

from bcss_jax.models.apply import ModelFunction


def forward_flops(
    run: ModelFunction, params: dict, model_state: dict, images: jax.Array | jax.ShapeDtypeStruct
) -> float:
    """Returns the floating-point operations of a forward pass; a multiplication and an addition count as two.

    The program is lowered for the CPU and not compiled: JAX gives no cost analysis of a program lowered for a GPU.

    Args:
      run: the network.
      params: its parameters, arrays or shapes.
      model_state: its other state, arrays or shapes.
      images: uint8 [N, H, W, 3], an array or its shape.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, model_state, images))
    forward = jax.jit(lambda params, model_state, images: run(params, model_state, images, train=False)[0])
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        analysis = forward.lower(*shapes).cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])
