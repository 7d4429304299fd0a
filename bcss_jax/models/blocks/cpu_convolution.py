"""Convolutions whose gradients XLA runs fast on CPUs too. Values and gradients are those of plain convolutions.

Which form is compiled depends on the platform that the program is lowered for, not on the devices of the machine.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]


def plain_conv(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> jax.Array:
    """Returns a convolution with zero padding.

    Args:
      x: (N, H, W, I).
      kernel: (kh, kw, I, O).
      stride: along height and width.
      padding: "SAME", "VALID", or the zeros before and after the map along height and width.

    Returns:
      (N, H', W', O).
    """
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


# On CPUs XLA's strided convolution is fast, but its gradients are many times slower than matrix products. In training
# the forward pass is a matrix product as well, which takes as long in total.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def strided_conv(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: Padding) -> jax.Array:
    """Returns `plain_conv` of the same arguments; its gradients are faster."""
    return plain_conv(x, kernel, stride, padding)


def _strided_forward(x, kernel, stride, padding):
    cpu, default = _strided_forms(stride, padding)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default), (x, kernel)


def _strided_backward(stride, padding, saved, dy):
    cpu, default = map(_gradients_of, _strided_forms(stride, padding))
    return lax.platform_dependent(*saved, dy, cpu=cpu, default=default)


def _gradients_of(form: Callable):
    """Returns `(x, kernel, cotangent of the output) -> gradients of x and kernel` of a form of the convolution."""
    return lambda x, kernel, dy: jax.vjp(form, x, kernel)[1](dy)


def _strided_forms(stride, padding):
    """Returns the forms for CPUs and for other platforms."""
    return [functools.partial(form, stride=stride, padding=padding) for form in (_product_of_patches, plain_conv)]


strided_conv.defvjp(_strided_forward, _strided_backward)


def _product_of_patches(x, kernel, stride, padding):
    """Returns `plain_conv` of the same arguments, computed as one matrix product."""
    kh, kw, inputs, outputs = kernel.shape
    if padding == "SAME":
        padding = lax.padtype_to_pads(x.shape[1:3], (kh, kw), stride, "SAME")
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = (1 + (size - k) // s for size, k, s in zip(x.shape[1:3], (kh, kw), stride, strict=True))
    shifted = [
        x[:, a : a + (h - 1) * stride[0] + 1 : stride[0], b : b + (w - 1) * stride[1] + 1 : stride[1]]
        for a in range(kh)
        for b in range(kw)
    ]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, kh * kw * inputs)
    return (patches @ kernel.reshape(-1, outputs)).reshape(x.shape[0], h, w, outputs)


# On CPUs XLA (jaxlib 0.10 to 0.12) is fast for the convolution and for its gradient with respect to the input. The
# gradient with respect to the kernel is a convolution with a window as large as the map, which runs at a half to a
# fifth of that speed, and inside a loop another 30 times slower.
@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `plain_conv` with stride one and a 3x3 kernel; its gradient is faster."""
    return plain_conv(x, kernel)


def _conv3x3_forward(x, kernel):
    return plain_conv(x, kernel), (x, kernel)


def _conv3x3_backward(saved, dy):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: plain_conv(x, kernel), x)(dy)
    dkernel = lax.platform_dependent(
        x,
        dy,
        cpu=lambda x, dy: conv3x3_kernel_gradient(x, dy).astype(kernel.dtype),
        default=lambda x, dy: jax.linear_transpose(lambda kernel: plain_conv(x, kernel), kernel)(dy)[0],
    )
    return dx, dkernel


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def conv3x3_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Returns the gradient of a 3x3 `plain_conv` with respect to its kernel.

    It is computed as matrix products over bands of rows.

    Args:
      x: input of the convolution (N, H, W, I).
      dy: cotangent of its output (N, H, W, O).

    Returns:
      float32 (3, 3, I, O).
    """
    n, h, w, inputs = x.shape
    outputs = dy.shape[-1]
    # A band of about 900 pixels with its shifted copies stays in the cache. Small maps are a single band.
    rows_at_most = h if n * h * w <= 4096 else max(1, min(h, 896 // w))
    bands = -(-h // rows_at_most)
    rows = -(-h // bands)
    below = bands * rows - h
    # dK[a, b] = sum over i, j of x[i + a - 1, j + b - 1] dy[i, j]. With few channels x is shifted nine times. With more
    # channels x is shifted three times along columns and dy three times along rows, for fewer copies and a squarer
    # product.
    nine_of_x = inputs + outputs <= 64
    x = jnp.pad(x, ((0, 0), (1, 1 + below) if nine_of_x else (0, below), (1, 1), (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, below) if nine_of_x else (1, 1 + below), (0, 0), (0, 0)))
    down_x, down_dy = (range(3), [0]) if nine_of_x else ([0], (2, 1, 0))

    def shifted(images, top, down, along):
        """Returns the pixels of a band (N, rows, w) from row `top`, each with its shifted copies: (N * rows * w, C)."""
        height = rows + max(down)
        band = lax.dynamic_slice_in_dim(images, top, height, axis=1)
        copies = [band[:, a : a + rows, b : b + w] for a in down for b in along]
        return jnp.concatenate(copies, axis=-1).reshape(images.shape[0] * rows * w, -1)

    def product(x, dy, top):
        """Returns the sum over the rows from `top` onward of these images."""
        return lax.dot_general(
            shifted(x, top, down_x, range(3)),
            shifted(dy, top, down_dy, [0]),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    def sum_of_products(x, dy):
        """Returns the sum over all bands of these images, taken one by one."""

        def add(i, total):
            x_of_image, dy_of_image = (lax.dynamic_slice_in_dim(array, i // bands, 1) for array in (x, dy))
            return total + product(x_of_image, dy_of_image, i % bands * rows)

        shape = (len(down_x) * 3 * inputs, len(down_dy) * outputs)
        return lax.fori_loop(0, x.shape[0] * bands, add, jnp.zeros(shape, jnp.float32))

    if n * h * w <= 4096:
        total = product(x, dy, 0)
    elif (parts := math.gcd(n, jax.device_count())) == 1:
        total = sum_of_products(x, dy)
    else:
        # Each device adds up its own images. In one loop over all images, each turn would wait for all devices.
        by_device = (array.reshape(parts, n // parts, *array.shape[1:]) for array in (x, dy))
        total = jax.vmap(sum_of_products)(*by_device).sum(0)
    if nine_of_x:
        return total.reshape(3, 3, inputs, outputs)
    return total.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)
