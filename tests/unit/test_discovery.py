"""Which classes a node finds, and what it says when it can't import them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.discovery import import_jobs
from cluster.errors import ExitCode, JobImportError

JOB = """
from cluster import Job
class {name}(Job):
    {option}
    def perform(self): ...
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of one test are not seen by the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def job(name: str, option: str = "") -> str:
    return JOB.format(name=name, option=option or "pass")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def names(modules: list[str], folder: Path) -> list[str]:
    return [job_class.__name__ for job_class in import_jobs(modules, folder)]


def refusal(modules: list[str], folder: Path | None) -> str:
    with pytest.raises(JobImportError) as caught:
        import_jobs(modules, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code is ExitCode.JOBS_NOT_IMPORTABLE
    return message


def test_classes_of_modules_are_found_in_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, {"mails.py": job("BJob") + job("CJob"), "files.py": job("AJob")})
    assert names(["mails", "files"], tmp_path) == ["AJob", "BJob", "CJob"]


def test_a_package_is_searched_to_its_leaves(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "found/__init__.py": "",
            "found/a.py": job("AJob"),
            "found/deep/__init__.py": job("BJob"),
            "found/deep/c.py": job("CJob"),
            "found/__main__.py": "raise SystemExit('must not run')",
        },
    )
    assert names(["found"], tmp_path) == ["AJob", "BJob", "CJob"]


def test_a_package_without_init_file_is_searched(tmp_path: Path) -> None:
    write(tmp_path, {"found/a.py": job("AJob")})
    assert names(["found"], tmp_path) == ["AJob"]


def test_the_working_directory_is_where_modules_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"here.py": job("AJob")})
    monkeypatch.chdir(tmp_path)
    assert [job_class.__name__ for job_class in import_jobs(["here"])] == ["AJob"]
    assert sys.path[0] == str(tmp_path.resolve())


def test_a_helper_that_is_not_named_is_not_searched(tmp_path: Path) -> None:
    write(tmp_path, {"mails.py": "import helper\n" + job("AJob"), "helper.py": job("BJob")})
    assert names(["mails"], tmp_path) == ["AJob"]


def test_a_class_imported_into_a_named_module_counts_once(tmp_path: Path) -> None:
    write(tmp_path, {"mails.py": "from helper import BJob\n" + job("AJob"), "helper.py": job("BJob")})
    assert names(["mails", "helper"], tmp_path) == ["AJob", "BJob"]


def test_bases_without_perform_are_no_job_types(tmp_path: Path) -> None:
    text = "from cluster import Job\nclass Base(Job):\n    queue = 'mail'\n"
    write(
        tmp_path,
        {"mails.py": text + job("AJob"), "more.py": "from mails import Base\nclass BJob(Base): ...\n"},
    )
    assert names(["mails", "more"], tmp_path) == ["AJob"]


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": job("AJob", "table = 'x_jobs'"), "b.py": job("AJob")})
    assert "a.AJob and b.AJob both have the name AJob" in refusal(["a", "b"], tmp_path)


def test_two_classes_of_one_table_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": job("AJob"), "b.py": job("BJob", "table = 'a_jobs'")})
    assert "a.AJob and b.BJob both have the table a_jobs" in refusal(["a", "b"], tmp_path)


def test_no_class_at_all_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, {"empty.py": "X = 1\n"})
    message = refusal(["empty"], tmp_path)
    assert "no job class in empty" in message
    assert "CLUSTER_JOBS" in message
    assert "no job modules are named" in refusal([], tmp_path)


def test_a_failing_import_names_the_line_of_the_users_code(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "broken/__init__.py": "",
            "broken/mail.py": "import json\nfrom broken_helper import load\nload()\n",
            "broken_helper.py": "import json\ndef load():\n    return json.loads('{')\n",
        },
    )
    message = refusal(["broken"], tmp_path)
    assert message.startswith("can't import broken.mail: JSONDecodeError: Expecting property name")
    assert message.endswith("(broken_helper.py:3)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_installed\n", "ModuleNotFoundError: No module named 'not_installed' (mails.py:1)"),
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (mails.py:2)"),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one (mails.py:1)"),
        (job("AJob", "max_attempt = 3"), "did you mean 'max_attempts'? (mails.py:3)"),
    ],
)  # fmt: skip
def test_whatever_a_module_raises_is_told_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, {"mails.py": text})
    message = refusal(["mails"], tmp_path)
    assert message.startswith("can't import mails: ")
    assert said in message
    assert "mails.py:" in message


def test_a_missing_module_is_told_with_what_may_be_meant(tmp_path: Path) -> None:
    write(tmp_path, {"worker_jobs/__init__.py": "", "worker_jobs/mail.py": job("AJob"), "plain.py": ""})
    assert "no module worker_job: did you mean 'worker_jobs'?" in refusal(["worker_job"], tmp_path)
    assert "no module worker_jobs.mial: did you mean 'worker_jobs.mail'?" in refusal(["worker_jobs.mial"], tmp_path)
    message = refusal(["quite_different"], tmp_path)
    assert f"no module quite_different in {tmp_path.resolve()}: it has plain, worker_jobs" in message
    assert "plain, which is not a package" in refusal(["plain.thing"], tmp_path)


def test_a_missing_module_in_an_empty_folder_is_told(tmp_path: Path) -> None:
    assert "it has no modules" in refusal(["quite_different"], tmp_path)


def test_a_module_that_imports_a_missing_part_of_itself_is_not_taken_for_missing(tmp_path: Path) -> None:
    write(tmp_path, {"mails/__init__.py": "import mails.missing\n"})
    assert refusal(["mails"], tmp_path).endswith("No module named 'mails.missing' (mails/__init__.py:1)")
