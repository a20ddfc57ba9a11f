from tests.pretrained.conftest import smollm2  # noqa: F401
