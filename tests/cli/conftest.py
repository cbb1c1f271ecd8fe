"""What a command changes in its process is set back after each test: the chosen device and the log handler."""
import logging

import pytest
from portrait_diffusion import host


@pytest.fixture(autouse=True)
def restore_process():
    log = logging.getLogger("portrait_diffusion")
    handlers = list(log.handlers)
    yield
    log.handlers[:] = handlers
    host.set_device(None)
