"""The command line as a whole: quick to start, quiet on stdout, one line and the right exit code on an error."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless
from typer.testing import CliRunner

from cohortseg import __version__
from cohortseg.cli import app
from cohortseg.cli.console import name_of
from cohortseg.weights import default_model_path
from tests.phantoms import write_series

COMMANDS = [command.callback.__name__ for command in app.registered_commands]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_starting_the_program_loads_neither_torch_nor_ray():
    code = "import sys, cohortseg.cli; print([name for name in ('torch', 'ray', 'polars') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_closed_or_full_standard_output_costs_no_results(tmp_path):
    write_series(tmp_path / "cohort")
    scan = f"{sys.executable} -m cohortseg scan {tmp_path / 'cohort'} -o {tmp_path}/m{{}}.parquet"
    for number, (ending, code) in enumerate(((">&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 1))):
        done = subprocess.run(["bash", "-c", f"{scan.format(number)} {ending}"], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert (tmp_path / f"m{number}.parquet").exists()
    told = "error: standard output cannot be written: No space left on device"
    assert told in done.stderr
    version = ["bash", "-c", f"{sys.executable} -m cohortseg --version >/dev/full"]
    done = subprocess.run(version, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith(told)


def test_of_damaged_pixels_a_quiet_run_says_one_line(tmp_path, model_path):
    """pydicom logs a traceback for each decoder that it tries."""
    (path,) = write_series(tmp_path / "cohort", shape=(1, 64, 48))
    dataset = pydicom.dcmread(path)
    frame_header = b"\xff\xf7\x00\x0b\x10\x00\x40\x00\x30\x01\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + bytes(90)
    dataset.PixelData = encapsulate([b"\xff\xd8" + frame_header + scan])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(path)
    command = [sys.executable, "-m", "cohortseg", "-q", "infer", tmp_path / "cohort", "-o", tmp_path / "out"]
    done = subprocess.run([*command, "--model", model_path], capture_output=True, text=True)
    assert done.returncode == 3
    assert "JPEG-LS" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "pydicom" not in done.stderr


def test_neither_settings_of_matplotlib_nor_a_full_disk_behind_stderr_cost_results(tmp_path, cohort, model_path):
    """Jupyter's shell commands inherit a backend that need not be installed beside cohortseg."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    command = [sys.executable, "-m", "cohortseg", "infer", cohort, "-o", "out", "--model", model_path]
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "COLUMNS": "0"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=full, text=True)
    assert done.returncode == 3, "one series of the cohort is damaged"
    assert "of 5 series were chosen" in done.stdout
    assert "data:image/png" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan", ""], "an argument is empty"),
        (["export", "x", "--format", "nifti", "--output="], "an argument is empty"),
        (["scan", "x" * 300], "File name too long"),
        (["scan", ":100:"], ":100:"),
    ],
)
def test_paths_that_can_be_none_are_refused_by_name(arguments, said):
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (2, "")
    assert said in " ".join(stderr.split())


def test_an_output_that_is_a_link_to_itself_is_refused_by_name(tmp_path, cohort):
    link = tmp_path / "link"
    link.symlink_to(link)
    code, stdout, stderr = run("infer", str(cohort), "-o", str(link))
    noticed = sys.version_info < (3, 13)  # later, paths resolve without, and the folder cannot be made
    assert (code, stdout) == (2 if noticed else 1, "")
    assert str(link) in "".join(stderr.split())


def test_an_output_is_named_after_a_link_and_not_after_its_target(tmp_path, monkeypatch):
    (tmp_path / "Doe_Jane").mkdir()
    (tmp_path / "study1").symlink_to(tmp_path / "Doe_Jane")
    monkeypatch.chdir(tmp_path)
    assert [name_of(Path(path)) for path in ("study1", "study1/", ".", "Doe_Jane/..")] == [
        "study1",
        "study1",
        tmp_path.name,
        tmp_path.name,
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    code, stdout, _ = run(command, "--help")
    assert code == 0
    assert "Example:" in stdout
    assert f"cohortseg {command}" in re.sub(r"\s+", " ", stdout)


def test_version():
    assert run("--version") == (0, f"cohortseg {__version__}\n", "")


def test_info_tells_versions_devices_and_the_model_with_its_terms():
    code, stdout, _ = run("info", "--json")
    facts = json.loads(stdout)
    assert code == 0
    assert facts["versions"]["cohortseg"] == __version__
    assert facts["device"]["cpus"] >= 1
    assert "non-commercial" in facts["model"]["licence"]
    import hashlib

    assert facts["model"]["sha256"] == hashlib.sha256(default_model_path().read_bytes()).hexdigest()
    code, stdout, _ = run("info")
    assert code == 0
    assert facts["model"]["sha256"][:20] in stdout


def test_info_tells_the_rest_where_no_cluster_answers():
    code, stdout, stderr = run("info", "--json", "--address", "127.0.0.1:1")
    facts = json.loads(stdout)
    assert (code, facts["device"]["ray_address"], "cluster" in facts) == (2, "127.0.0.1:1", False)
    assert "no Ray cluster answers at 127.0.0.1:1" in stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["infer", "does-not-exist"], "does not exist"),
        (["scan", "does-not-exist"], "does-not-exist"),
        (["report", "does-not-exist"], "does-not-exist"),
        (["export", "does-not-exist", "--format", "png"], "does-not-exist"),
        (["export", "damaged", "--format", "nifti"], "cannot be read as Parquet"),
        (["report", "damaged"], "cannot be read as Parquet"),
        (["sample", "x", "--patients", "0"], "patients"),
        (["evaluate", "--data", "does-not-exist"], "TrainingSet"),
    ],
)
def test_wrong_usage_is_one_error_and_exit_code_2_with_nothing_on_stdout(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/burden.parquet").write_bytes(b"PAR1, and no more")
    code, stdout, stderr = run(*arguments)
    assert code == 2
    assert stdout == ""
    assert words in stderr
    assert "Traceback" not in stderr


@pytest.fixture
def nobody():
    """Act as an ordinary user within: for root no folder is closed."""

    @contextmanager
    def acting():
        mine = os.geteuid()
        if mine == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(mine)

    return acting


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "closed/cohort"],
        ["infer", "closed/cohort", "-o", "out"],
        ["infer", "open", "-o", "closed/out"],
        ["report", "closed/out"],
        ["export", "closed/out", "--format", "png"],
        ["train", "--data", "closed/data", "-o", "out"],
    ],
)
def test_a_closed_folder_is_one_error_that_names_it(monkeypatch, nobody, arguments):
    with TemporaryDirectory() as name:  # not tmp_path, whose parents are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.chdir(folder)
        write_series(folder / "open")
        (folder / "closed").mkdir()
        run(*arguments)  # loads what the command needs, which an ordinary user of the test's machine may not read
        (folder / "closed").chmod(0)
        with nobody():
            code, stdout, stderr = run(*arguments)
        (folder / "closed").chmod(0o700)
        monkeypatch.undo()
    assert (code, stdout) == (2, "")
    assert "closed" in stderr
    assert "rights" in stderr
    assert "Traceback" not in stderr


def test_brackets_in_a_path_are_no_markup(tmp_path):
    code, _, stderr = run("scan", str(tmp_path / "a[/b]"))
    assert code == 2
    assert "a[/b]: does not exist" in stderr.replace("\n", "")


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_quiet_is_taken_before_and_behind_the_command(tmp_path, place):
    command = ["sample", str(tmp_path / "x"), "--patients", "1", "--timepoints", "1", "--size", "64", "--slices", "2"]
    command.insert(place, "-q")
    assert run(*command) == (0, "", "")


@pytest.mark.parametrize("command", ["scan", "infer"])
def test_a_narrow_terminal_shows_what_was_found(tmp_path, command):
    write_series(tmp_path / "cohort", spacing_mm=(12, 0.8, 0.6))
    arguments = [command, str(tmp_path / "cohort"), *(["-o", str(tmp_path / "out")] if command == "infer" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "cohortseg", "-q", *arguments],
        env=os.environ | {"COLUMNS": "60"},
        capture_output=True,
        text=True,
        check=False,
    )
    words = {"scan": "thick_slices", "infer": "no lung was found"}[command]
    assert words in " ".join(done.stdout.replace("reason", "").split())


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_that_does_not_get_through_is_heeded_at_the_next_report(tmp_path, name):
    """Python itself drops what is raised within a destructor."""
    write_series(tmp_path / "cohort")
    script = tmp_path / "swallowing.py"
    script.write_text(f"""
import os, signal, sys
import cohortseg.dicom.scan as scan
from cohortseg.cli import main
class Swallowing:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(9):  # Python looks for signals where a loop turns
            pass
real = scan.scan_cohort
def scan_cohort(*arguments, **options):
    Swallowing()
    print("went on", flush=True)
    return real(*arguments, **options)
scan.scan_cohort = scan_cohort
if __name__ == "__main__":
    main()
""")
    command = [sys.executable, script, "-q", "scan", tmp_path / "cohort", "-o", tmp_path / "m.parquet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "went on\n")
    assert done.stderr.splitlines()[-1] == "error: interrupted"
    assert not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize("place", ["typer.main.get_command", "typer.core.TyperGroup.make_context"])
def test_an_interruption_before_the_command_begins_is_one_line(tmp_path, place):
    done = run_script(
        tmp_path,
        f"""
import os, signal
import typer.main, typer.core
from cohortseg.cli import main
real = {place}
def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return real(*arguments, **options)
{place} = interrupted
main()
""",
        "info",
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: interrupted\n")


@pytest.mark.parametrize("is_early", [True, False])
def test_a_second_signal_while_an_interrupted_command_ends_changes_nothing(tmp_path, is_early):
    """torch alone takes a second to end."""
    done = run_script(
        tmp_path,
        f"""
import atexit, os, signal
import cohortseg.dicom.scan as scan
from cohortseg.cli import main
def second():
    os.kill(os.getpid(), signal.SIGTERM)
def scan_cohort(*_, **__):
    if not {is_early}:
        atexit.register(second)
    os.kill(os.getpid(), signal.SIGINT)
if {is_early}:
    atexit.register(second)
scan.scan_cohort = scan_cohort
main()
""",
        "scan",
        str(tmp_path),
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: interrupted\n")


def test_after_the_command_line_a_program_that_goes_on_can_be_interrupted_as_before(tmp_path):
    done = run_script(
        tmp_path,
        """
import os, signal, sys, time
from cohortseg.cli import main
for _ in range(2):
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        print("interrupted")
""",
        "--version",
    )
    assert done.stdout.splitlines()[1:3] == ["0", "interrupted"], done.stderr
    assert done.stdout.splitlines()[4:] == ["0", "interrupted"], done.stderr


def run_script(folder, text, *arguments):
    script = folder / "script.py"
    script.write_text(text)
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


def test_the_model_s_folder_holds_its_notice_and_card():
    folder = default_model_path().parent
    assert "non-commercial" in (folder / "NOTICE.md").read_text(encoding="utf-8")
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for heading in ("Data", "Recipe", "Results", "Known failures", "Intended use"):
        assert f"## {heading}" in card


def test_warnings_of_libraries_which_may_quote_headers_are_not_shown(capsys):
    import logging

    from cohortseg.cli.console import set_verbosity

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_verbosity(quiet=False, verbose=True)
        logging.getLogger("pydicom").warning("Unknown encoding 'DOE^JANE'")
        logging.getLogger("cohortseg.infer").info("series 0123 failed")
        shown = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "DOE" not in shown
    assert "series 0123 failed" in shown


@pytest.mark.parametrize("files", [60_000, 1000])
def test_time_left_is_reckoned_anew_where_other_things_are_counted(monkeypatch, capsys, files):
    from cohortseg.cli import console

    clock = iter([0.0, 0.0, 600.0, 620.0, 640.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "err", console.Console(stderr=True, highlight=False))
    with console.progress("Scanning") as report:
        report(0, files, "files")
        report(files, files, "files")
        report(0, 1000, "series")
        report(100, 1000, "series")
    assert capsys.readouterr().err.splitlines()[-1] == "Scanning: 100/1000, 180 s left series"
