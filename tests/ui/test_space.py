"""The Space starts as Hugging Face starts it, and what it says of itself is what is pinned."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

SPACE = Path(__file__).parents[2] / "space"
ROOT = SPACE.parent


def pinned(name: str) -> str:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==(.*)$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_front_matter_pins_what_is_tested_here() -> None:
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == pinned("gradio")
    assert (SPACE / front["app_file"]).is_file()
    assert front["hf_oauth"] is True
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
    assert all("==" in line for line in lines)
    for name in ("torch", "transformers"):
        assert f"{name}=={pinned(name)}" in lines


@pytest.mark.slow
def test_it_starts_as_a_space_would(tmp_path: Path, free_port: int) -> None:
    shutil.copytree(SPACE, tmp_path / "app")
    hub = {
        "SPACE_ID": "somebody/obliteratus",
        "SYSTEM": "spaces",
        "SPACE_HOST": "somebody-obliteratus.hf.space",
        "OAUTH_CLIENT_ID": "id",
        "OAUTH_CLIENT_SECRET": "secret",
        "OAUTH_SCOPES": "openid profile manage-repos",
        "OPENID_PROVIDER_URL": "http://127.0.0.1:9",
        "GRADIO_SERVER_PORT": str(free_port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path / "app", env={**os.environ, **hub}
    )
    try:
        page = ""
        deadline = time.monotonic() + 300
        while not page and time.monotonic() < deadline:
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{free_port}", timeout=10) as answer:
                    page = answer.read().decode()
            except OSError:
                time.sleep(0.3)
        assert "Send as me" in page
        assert (tmp_path / "app" / "out").is_dir() or Path("/data/out").is_dir()
    finally:
        process.terminate()
        process.wait(timeout=120)
