"""A worker of Ray that one part kills; a module of its own, since Ray's processes import it by its name."""

import os
import signal
from typing import Any

from swindow.predict.bulk import engines


class Fragile(engines.RayWorker):
    """Dies of part 1, as of an image that ends a decoder."""

    def _outcome(self, ray: Any, part: int) -> tuple[str, str]:
        if part != 1:
            return super()._outcome(ray, part)
        if ray.get(self.starts.of.remote(part)) > engines.DEATHS:
            return "", engines.GIVEN_UP
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it is dead")
