"""Pre-training whose rank 1 fails as told, `absent` or `sleeps`; then the words of `unimo_ds.pretrain`."""

import sys
import time
from typing import Any

from unimo_ds import distributed
from unimo_ds.engine.engine import Engine
from unimo_ds.pretrain import main


def sleep_in_step_5() -> None:
    step = Engine.step

    def sleeping(self: Engine, number: int, *rest: Any) -> Any:
        if number == 5:
            time.sleep(1000)
        return step(self, number, *rest)

    Engine.step = sleeping  # type: ignore[method-assign]


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if distributed.environment().rank == 1:
        if words[0] == "absent":
            time.sleep(1000)
        sleep_in_step_5()
    distributed.leave(main(words[1:]))
