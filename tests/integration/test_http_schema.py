"""The API against its own OpenAPI document, with data that fits it and data that does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.byte_tokenizer import write_model_dir
from tests.frontend_harness import start_frontend

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,negative_data_rejection,"
    "unsupported_method,missing_required_header"
)


def test_any_request_gets_a_proper_answer(tmp_path: Path) -> None:
    frontend = start_frontend(write_model_dir(tmp_path))
    try:
        # its command line: the plugin does not go with every pytest
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{frontend.url}/openapi.json"]
        options = ["--mode", "all", "--max-examples", "20", "--seed", "1", "--checks", CHECKS, "--no-color"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stdout[-6000:]
        assert "13 passed" in done.stdout
    finally:
        frontend.stop()
