from __future__ import annotations

import platform
from pathlib import Path

import pytest


def test_it_says_what_was_built(sdk):
    info = sdk.__build_info__
    assert info["name"] == "crewai-native-sdk-testmod"
    assert info["version"] == info["sdk"]
    assert info["profile"] == "debug"
    assert info["contract"] == 1
    assert platform.machine() in info["target"]
    assert info["git"]
    assert info["answer"] == 42
    assert info["sqlite"] == "3.51.3"


@pytest.mark.skipif(platform.system() != "Linux", reason="compares with /proc/cpuinfo")
def test_the_cpu_features_are_those_that_linux_reports(sdk):
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    lines = [line for line in cpuinfo if line.startswith(("flags", "Features"))]
    reported = set(lines[0].split(":")[1].split())
    # Where Linux spells a name in another way than rustc.
    spelling = {
        "sse4.2": "sse4_2",
        "avxvnni": "avx_vnni",
        "avx512vnni": "avx512_vnni",
        "avx512bf16": "avx512_bf16",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "neon": "asimd",
        "dotprod": "asimddp",
        "fp16": "fphp",
    }
    found = {spelling.get(name, name) for name in sdk.__build_info__["cpu_features"]}
    assert found
    assert found <= reported
