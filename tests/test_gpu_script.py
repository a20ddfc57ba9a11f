"""What `make gpu` can be asked without a GPU."""

from __future__ import annotations

import importlib.metadata
import sys

from tests.gpu.__main__ import PACKAGES_MEASURED, version_of


def test_versions_are_asked_of_distributions(tmp_path, monkeypatch):
    """liger-kernel has no __version__, and flash_attn.cute imports without being FlashAttention 4."""
    (tmp_path / "liger_kernel").mkdir()
    (tmp_path / "liger_kernel" / "__init__.py").write_text("raise RuntimeError('not to be imported')\n")
    (tmp_path / "liger_kernel-0.6.4.dist-info").mkdir()
    (tmp_path / "liger_kernel-0.6.4.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: liger-kernel\nVersion: 0.6.4\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = {name: version_of(name) for name in PACKAGES_MEASURED}
    assert found["liger-kernel"] == "0.6.4" and found["torch"] == importlib.metadata.version("torch")
    assert found["flash-attn-4"] is None
