"""The API against its own OpenAPI document, with data that fits it and data that does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from colocate.config.serve import HttpSection, SchedulerSection
from tests.byte_tokenizer import write_model_dir
from tests.frontend_harness import start_frontend

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,negative_data_rejection,"
    "unsupported_method,missing_required_header"
)
# A header that nobody has heard of is nobody's mistake: HTTP says to ignore it.
CONFIG = "[generation]\nallow-extra-parameters = false\n"


def test_any_request_gets_a_proper_answer(tmp_path: Path) -> None:
    scheduler = SchedulerSection(slo_class=("interactive: ttft 300 ms, tpot 50 ms", "batch: none"))
    frontend = start_frontend(write_model_dir(tmp_path), HttpSection(admin_key=("mellon",)), scheduler=scheduler)
    try:
        # its command line: the plugin does not go with every pytest
        (tmp_path / "schemathesis.toml").write_text(CONFIG)
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{frontend.url}/openapi.json"]
        options = ["--mode", "all", "--max-examples", "20", "--seed", "1", "--checks", CHECKS, "--no-color"]
        options += ["--header", "authorization: Bearer mellon"]  # the control calls are tried too
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stdout[-6000:]
        assert "16 passed" in done.stdout
    finally:
        frontend.stop()
