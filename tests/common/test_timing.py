import time

from bcss_jax.common.timing import InputWait


def test_input_wait_counts_only_the_waiting():
    def slow():
        for i in range(3):
            time.sleep(0.05)
            yield i

    waiting = InputWait(slow())
    assert next(waiting) == 0
    before = waiting.seconds
    time.sleep(0.2)
    assert waiting.seconds == before >= 0.05
    assert list(waiting) == [1, 2]
    assert waiting.seconds >= 0.15
