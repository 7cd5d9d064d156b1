"""The names that `import obliteratus` promises."""

import subprocess
import sys

import obliteratus


def test_at_most_25_sorted_names_that_all_resolve() -> None:
    assert len(obliteratus.__all__) <= 25
    assert list(obliteratus.__all__) == sorted(obliteratus.__all__)
    for name in obliteratus.__all__:
        assert getattr(obliteratus, name) is not None


def test_functions_win_over_the_folders_of_the_same_name() -> None:
    code = (
        "import obliteratus.probe.capture, obliteratus.release.save, obliteratus.verify.verify\n"
        "import obliteratus\n"
        "assert all(callable(f) for f in (obliteratus.probe, obliteratus.verify,"
        " obliteratus.release))\n"
        "from obliteratus.probe.capture import probe\n"
        "assert probe is obliteratus.probe\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import obliteratus, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    code = "import obliteratus; obliteratus.nonsense"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "has no attribute 'nonsense'" in result.stderr


def test_the_built_in_prompts_need_no_settings() -> None:
    """As in the README's example."""
    assert len(obliteratus.contrast_set().harmful) == 768
