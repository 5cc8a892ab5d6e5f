"""What the environment may say, and how the node answers when it says something else."""

from __future__ import annotations

import pickle
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.container import available_cpus, memory_limit, worker_processes, worker_share
from cluster.errors import ExitCode, SettingsError
from cluster.settings import Settings, database_url, load_settings, mask_url

URL = "postgresql://app:geheim@db:5432/app"


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(environ: dict[str, str], **flags: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, **flags)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code is ExitCode.USAGE
    return message


def described(settings: Settings, variable: str) -> tuple[str, str]:
    return next((value, source) for name, value, source, _ in settings.describe() if name == variable)


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = load_settings({})
    assert settings.database_url == settings.direct_database_url == ""
    assert not settings.database_configured
    assert settings.jobs == ()
    assert settings.queues == ("*",)
    assert settings.processes >= 1
    assert settings.concurrency == 16
    assert settings.heartbeat_interval == timedelta(seconds=5)
    assert settings.lease == timedelta(seconds=30)
    assert settings.poll_interval == timedelta(seconds=60)
    assert settings.shutdown_timeout == timedelta(seconds=25)
    assert (settings.http_host, settings.http_port) == ("0.0.0.0", 9464)
    assert (settings.dashboard_host, settings.dashboard_port) == ("127.0.0.1", 8080)
    assert (settings.dashboard_prefix, settings.dashboard_auth) == ("/jobs", "basic")
    assert settings.log_level == "info"


def test_settings_are_frozen_and_survive_the_way_to_a_child_process() -> None:
    settings = load_settings({"PGHOST": "db"})
    for name in Settings.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, name, getattr(settings, name))
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.database_configured


def test_building_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_CONCURRENCY", "3")
    assert Settings().concurrency == 16
    assert load_settings().concurrency == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("2.5", 2.5),
        ("30s", 30),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172800),
        (" 7 s ", 7),
    ],
)
def test_a_duration_is_a_number_with_an_optional_unit(text: str, seconds: float) -> None:
    assert load_settings({"CLUSTER_POLL_INTERVAL": text}).poll_interval == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["soon", "5 minutes", "-3s", "1h30m", "nan", "inf", "1e3", "s"])
def test_a_malformed_duration_is_refused_with_the_forms_that_work(text: str) -> None:
    message = refusal({"CLUSTER_POLL_INTERVAL": text})
    assert message.startswith(f"CLUSTER_POLL_INTERVAL={text!r}: ")
    assert "500ms" in message


@pytest.mark.parametrize("name", ["HEARTBEAT_INTERVAL", "LEASE", "POLL_INTERVAL", "SHUTDOWN_TIMEOUT"])
def test_a_duration_of_zero_is_refused(name: str) -> None:
    assert f"CLUSTER_{name}='0s': a duration should be longer than 0s" in refusal({f"CLUSTER_{name}": "0s"})


def test_a_duration_beyond_what_can_be_kept_is_refused() -> None:
    assert "this long" in refusal({"CLUSTER_LEASE": "99999999999d"})


@pytest.mark.parametrize(("text", "size"), [("800MiB", 800 * 2**20), ("1.5GB", 1_500_000_000), ("2097152", 2 * 2**20)])
def test_a_size_is_a_number_with_an_optional_unit(text: str, size: int) -> None:
    assert load_settings({"CLUSTER_RECYCLE_MEMORY": text}).recycle_memory == size


@pytest.mark.parametrize("text", ["much", "800 Mega", "-1MiB", "800Mi"])
def test_a_malformed_size_is_refused_with_the_forms_that_work(text: str) -> None:
    assert "800MiB" in refusal({"CLUSTER_RECYCLE_MEMORY": text})


def test_recycling_after_no_job_or_with_hardly_any_memory_is_refused() -> None:
    assert "CLUSTER_RECYCLE_JOBS='0'" in refusal({"CLUSTER_RECYCLE_JOBS": "0"})
    assert "CLUSTER_RECYCLE_MEMORY='512'" in refusal({"CLUSTER_RECYCLE_MEMORY": "512"})


def test_a_lease_shorter_than_three_heartbeats_is_refused() -> None:
    assert load_settings({"CLUSTER_LEASE": "15s"}).lease == timedelta(seconds=15)
    message = refusal({"CLUSTER_LEASE": "14s"})
    assert message == "CLUSTER_LEASE=14s: should be at least 15s, three times CLUSTER_HEARTBEAT_INTERVAL=5s"
    assert "at least 60s" in refusal({"CLUSTER_HEARTBEAT_INTERVAL": "20"})


def test_lists_are_comma_separated_trimmed_and_without_repetition() -> None:
    settings = load_settings({"CLUSTER_QUEUES": " default , email,,email", "CLUSTER_JOBS": "jobs.a, jobs.b"})
    assert settings.queues == ("default", "email")
    assert settings.jobs == ("jobs.a", "jobs.b")


def test_a_list_of_queues_without_a_queue_is_refused() -> None:
    assert refusal({"CLUSTER_QUEUES": " , "}) == "CLUSTER_QUEUES=',': should name at least one"


def test_a_path_instead_of_a_job_module_is_refused() -> None:
    assert "jobs.email" in refusal({"CLUSTER_JOBS": "jobs/email.py"})


def test_jobs_default_to_the_package_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    assert load_settings({}).jobs == ()
    (tmp_path / "jobs" / "__init__.py").touch()
    assert load_settings({}).jobs == ("jobs",)
    assert load_settings({"CLUSTER_JOBS": "other"}).jobs == ("other",)


def test_an_empty_variable_counts_as_unset() -> None:
    empty = {"CLUSTER_LEASE": "", "CLUSTER_QUEUES": "  ", "CLUSTER_DATABASE_URL": "", "CLUSTER_NO_SUCH": ""}
    settings = load_settings(empty | {"DATABASE_URL": URL})
    assert settings.lease == timedelta(seconds=30)
    assert settings.queues == ("*",)
    assert settings.database_url == URL


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
@pytest.mark.parametrize("variable", ["CLUSTER_PROCESSES", "CLUSTER_CONCURRENCY"])
def test_fewer_than_one_worker_or_slot_is_refused(variable: str, value: str) -> None:
    assert refusal({variable: value}).startswith(f"{variable}={value!r}: should be ")


@pytest.mark.parametrize("value", ["-1", "65536", "http"])
@pytest.mark.parametrize("variable", ["CLUSTER_HTTP_PORT", "CLUSTER_DASHBOARD_PORT"])
def test_a_port_outside_0_to_65535_is_refused(variable: str, value: str) -> None:
    assert refusal({variable: value}).startswith(f"{variable}={value!r}: should be ")


def test_log_settings_ignore_case_and_refuse_what_they_do_not_know() -> None:
    settings = load_settings({"CLUSTER_LOG_LEVEL": "DEBUG", "CLUSTER_LOG_FORMAT": "JSON"})
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert "'console' or 'json'" in refusal({"CLUSTER_LOG_FORMAT": "xml"})
    assert "CLUSTER_LOG_LEVEL='loud'" in refusal({"CLUSTER_LOG_LEVEL": "loud"})


def test_the_dashboard_prefix_starts_with_a_slash_and_ends_without() -> None:
    assert load_settings({"CLUSTER_DASHBOARD_PREFIX": "/admin/jobs/"}).dashboard_prefix == "/admin/jobs"
    assert load_settings({"CLUSTER_DASHBOARD_PREFIX": "/"}).dashboard_prefix == ""
    assert "starts with a slash" in refusal({"CLUSTER_DASHBOARD_PREFIX": "jobs"})


def test_dashboard_auth_is_basic_none_or_a_function() -> None:
    for auth in ("basic", "none", "app.auth:authenticate"):
        assert load_settings({"CLUSTER_DASHBOARD_AUTH": auth}).dashboard_auth == auth
    assert "app.auth:authenticate" in refusal({"CLUSTER_DASHBOARD_AUTH": "oauth"})


def test_the_database_url_falls_back_to_database_url_and_then_to_libpq() -> None:
    assert load_settings({"CLUSTER_DATABASE_URL": URL, "DATABASE_URL": "postgresql://x/y"}).database_url == URL
    assert load_settings({"DATABASE_URL": URL}).database_configured
    settings = load_settings({"PGHOST": "db"})
    assert settings.database_url == ""
    assert settings.database_configured
    assert load_settings({"PGSERVICE": "app"}).database_configured
    assert not load_settings({"PGHOST": ""}).database_configured


def test_the_direct_url_falls_back_to_the_database_url() -> None:
    direct = "postgresql://db:5432/app"
    assert load_settings({"DATABASE_URL": URL}).direct_database_url == URL
    environ = {"CLUSTER_DATABASE_URL": URL, "CLUSTER_DIRECT_DATABASE_URL": direct}
    assert load_settings(environ).direct_database_url == direct


def test_a_database_flag_never_leaves_the_direct_url_on_another_database() -> None:
    environ = {"CLUSTER_DATABASE_URL": URL, "CLUSTER_DIRECT_DATABASE_URL": URL}
    assert load_settings(environ, database_url="postgresql://here/x").direct_database_url == "postgresql://here/x"


def test_libpq_uris_with_several_hosts_and_plain_conninfo_are_accepted() -> None:
    for url in ("postgres://a:1,b:2/app?target_session_attrs=read-write", "host=db dbname=app"):
        assert load_settings({"CLUSTER_DATABASE_URL": url}).database_url == url


def test_a_url_that_libpq_does_not_read_is_refused_without_showing_it() -> None:
    for url in ("postgresql+asyncpg://app:geheim@db/app", "app:geheim@db", "postgresql://a:geheim%@h/x"):
        message = refusal({"CLUSTER_DATABASE_URL": url})
        assert message.startswith("CLUSTER_DATABASE_URL: should be a libpq URI such as postgresql://")
        assert "geheim" not in message
    assert refusal({"DATABASE_URL": "sqlite:///x"}).startswith("DATABASE_URL: ")


@pytest.mark.parametrize("name", ["DATABASE_URL", "DIRECT_DATABASE_URL", "DASHBOARD_PASSWORD"])
@pytest.mark.parametrize("file_name", ["upper", "lower", "_FILE"])
def test_every_secret_may_live_in_a_file(tmp_path: Path, name: str, file_name: str) -> None:
    variable = f"CLUSTER_{name}"
    file = tmp_path / (variable.lower() if file_name == "lower" else variable)
    file.write_text(f"{URL}\n")
    environ = {f"{variable}_FILE": str(file)} if file_name == "_FILE" else {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    settings = load_settings(environ)
    assert getattr(settings, name.lower()) == URL
    assert described(settings, variable)[1] == "file"


def test_a_secret_variable_beats_the_credentials_directory_which_beats_database_url(tmp_path: Path) -> None:
    (tmp_path / "CLUSTER_DATABASE_URL").write_text(URL)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "DATABASE_URL": "postgresql://c/c"}
    assert load_settings(environ).database_url == URL
    environ["CLUSTER_DATABASE_URL"] = "postgresql://a/a"
    assert load_settings(environ).database_url == "postgresql://a/a"


def test_a_credentials_directory_without_our_files_changes_nothing(tmp_path: Path) -> None:
    assert not load_settings({"CREDENTIALS_DIRECTORY": str(tmp_path / "gone")}).database_configured


def test_an_unreadable_secret_file_is_refused(tmp_path: Path) -> None:
    message = refusal({"CLUSTER_DATABASE_URL_FILE": str(tmp_path / "gone")})
    assert message.startswith("CLUSTER_DATABASE_URL_FILE: can't read ")
    assert message.endswith("No such file or directory")
    (tmp_path / "cluster_dashboard_password").mkdir()
    assert "CLUSTER_DASHBOARD_PASSWORD: can't read" in refusal({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refusal({"CLUSTER_DATABASE_URL_FILE": str(tmp_path / "binary")})


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in refusal({"CLUSTER_DASHBOARD_PASSWORD_FILE": str(tmp_path / "empty")})


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    environ = {"CLUSTER_DATABASE_URL": URL, "CLUSTER_DATABASE_URL_FILE": str(tmp_path / "url")}
    message = refusal(environ)
    assert "both set" in message
    assert "geheim" not in message


def test_a_misspelt_variable_is_refused_with_a_suggestion() -> None:
    message = refusal({"CLUSTER_CONCURENCY": "3"})
    assert message == "CLUSTER_CONCURENCY is not a setting: did you mean CLUSTER_CONCURRENCY?"


def test_a_file_variable_for_something_that_is_no_secret_is_refused() -> None:
    assert "did you mean CLUSTER_PROCESSES?" in refusal({"CLUSTER_PROCESSES_FILE": "x"})


def test_variables_that_kubernetes_injects_for_services_are_ignored() -> None:
    address = "tcp://10.0.0.1:80"
    injected = {
        "CLUSTER_SERVICE_HOST": "10.0.0.1",
        "CLUSTER_SERVICE_PORT": "80",
        "CLUSTER_SERVICE_PORT_HTTP": "80",
        "CLUSTER_PORT": address,
        "CLUSTER_PORT_80_TCP": address,
        "CLUSTER_PORT_80_TCP_PROTO": "tcp",
        "CLUSTER_PORT_80_TCP_ADDR": "10.0.0.1",
        "CLUSTER_PORT_53_UDP": "udp://10.0.0.1:53",
        "CLUSTER_DNS_PORT": "udp://10.0.0.1:53",
        "CLUSTER_HTTP_SERVICE_HOST": "10.0.0.1",
        "CLUSTER_HTTP_PORT": address,
        "CLUSTER_DASHBOARD_PORT": address,
    }
    settings = load_settings(injected)
    assert (settings.http_port, settings.dashboard_port) == (9464, 8080)
    assert described(settings, "CLUSTER_HTTP_PORT") == ("9464", "default")


def test_a_port_variable_of_no_service_is_still_refused() -> None:
    assert "CLUSTER_PORT is not a setting" in refusal({"CLUSTER_PORT": "80"})


def test_all_problems_are_told_at_once() -> None:
    message = refusal({"CLUSTER_PROCESSES": "x", "CLUSTER_LEASE": "y\nz", "CLUSTER_LEASES": "1", "DATABASE_URL": "q"})
    for part in ("CLUSTER_PROCESSES='x'", r"CLUSTER_LEASE='y\nz'", "CLUSTER_LEASES is not", "DATABASE_URL: "):
        assert part in message


def test_a_flag_beats_the_environment_and_none_means_not_given() -> None:
    environ = {"CLUSTER_PROCESSES": "2", "CLUSTER_CONCURRENCY": "3"}
    settings = load_settings(environ, processes=4, concurrency=None, queues="a,b", lease=timedelta(minutes=1))
    assert (settings.processes, settings.concurrency, settings.queues) == (4, 3, ("a", "b"))
    assert described(settings, "CLUSTER_PROCESSES") == ("4", "flag")
    assert described(settings, "CLUSTER_CONCURRENCY") == ("3", "environment")
    assert described(settings, "CLUSTER_LEASE") == ("60s", "flag")
    assert "CLUSTER_PROCESSES (from a flag)=0" in refusal({}, processes=0)


def test_a_flag_that_is_no_setting_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="no such setting: colour"):
        load_settings({}, colour="red")


def test_describe_explains_every_variable_and_shows_no_secret() -> None:
    settings = load_settings({"CLUSTER_DATABASE_URL": URL, "CLUSTER_DASHBOARD_PASSWORD": "geheim"})
    rows = settings.describe()
    assert len(rows) == len(Settings.model_fields)
    assert all(description and "\n" not in description for *_, description in rows)
    assert "geheim" not in repr(rows) + repr(settings) + str(settings)
    assert described(settings, "CLUSTER_DATABASE_URL") == ("postgresql://app:***@db:5432/app", "environment")
    assert described(settings, "CLUSTER_DIRECT_DATABASE_URL")[1] == "default"
    assert described(settings, "CLUSTER_DASHBOARD_PASSWORD") == ("***", "environment")
    assert described(settings, "CLUSTER_HEARTBEAT_INTERVAL") == ("5s", "default")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p%40q%2Fs@h:1,i:2/d", "postgresql://u:***@h:1,i:2/d"),
        ("postgresql://u:p@q:r/s@h:1,i:2/d", "user=u password=*** dbname=s@h:1,i:2/d host=q port=r"),
        ("postgresql://h/d?user=u&p%61ssword=p", "user=u password=*** dbname=d host=h"),
        (
            "postgresql://u:p@h/d?options=-csearch_path%3Da@b",
            "user=u password=*** dbname=d host=h options=-csearch_path=a@b",
        ),
        ("host=h password='p d", "***"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgresql://h/d?password=p&sslmode=require", "postgresql://h/d?password=***&sslmode=require"),
        ("postgresql:///d?user=u&sslpassword=p", "postgresql:///d?user=u&sslpassword=***"),
        ("host=h password=p&q dbname=d", "host=h password=*** dbname=d"),
        (r"password = 'p \' q' host=h", "password = *** host=h"),
        (r"password=p\ q host=h", "password=*** host=h"),
        ("", ""),
    ],
)
def test_passwords_are_masked_wherever_libpq_takes_them(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


V1 = {"proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/docker/abc"}
V2 = {"proc/self/cgroup": "0::/app.slice/app.service"}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        (V2 | {"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        (V2 | {"sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
        (V2 | {"sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        (V2 | {"sys/fs/cgroup/cpu.max": "6400000 100000"}, 8),
        (V2 | {"sys/fs/cgroup/app.slice/cpu.max": "200000 100000"}, 2),
        (V2 | {"sys/fs/cgroup/app.slice/app.service/cpu.max": "200000 100000"}, 2),
        (
            V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
    ],
)
def test_processes_default_to_the_cpus_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert available_cpus(write(tmp_path, files)) == cpus


MIB = 2**20
HALF_A_GIB = {"sys/fs/cgroup/memory.max": str(512 * MIB)}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        (V2 | {"sys/fs/cgroup/memory.max": "max"}, None),
        (V2 | HALF_A_GIB, 512 * MIB),
        (V2 | HALF_A_GIB | {"sys/fs/cgroup/app.slice/memory.max": str(300 * MIB)}, 300 * MIB),
        (V1, None),
        ({"proc/self/cgroup": "4:memory:/docker/abc", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{400 * MIB}"}, 400 * MIB),
        ({"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)  # fmt: skip
def test_the_memory_of_the_container_is_known(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    assert memory_limit(write(tmp_path, files)) == limit


def test_a_container_with_little_memory_does_not_start_a_process_for_each_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    root = write(tmp_path, V2 | HALF_A_GIB)
    assert worker_processes(root) == 3
    assert worker_share(3, root) == 128 * MIB
    assert worker_share(1, root) == 384 * MIB
    assert worker_share(4, root) is None  # too little to hold jobs to: the kernel's limit is the only one


def test_memory_follows_the_container_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.container.memory_limit", lambda _root: 1024 * MIB)
    found = load_settings({"CLUSTER_PROCESSES": "2"})
    assert (found.worker_memory, found.recycle_memory) == (448 * MIB, 448 * MIB * 4 // 5)
    found = load_settings({"CLUSTER_PROCESSES": "2", "CLUSTER_WORKER_MEMORY": "1GiB", "CLUSTER_RECYCLE_MEMORY": "2GiB"})
    assert (found.worker_memory, found.recycle_memory) == (1024 * MIB, 2048 * MIB)


def test_without_a_limit_of_a_container_there_is_none_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.container.memory_limit", lambda _root: None)
    found = load_settings({})
    assert (found.worker_memory, found.recycle_memory) == (None, None)


def test_a_stranger_among_the_variables_is_named_and_not_refused() -> None:
    assert load_settings({"CLUSTER_SNARK": "1"}).strangers == ("CLUSTER_SNARK",)


def test_a_url_in_a_file_is_read_anew_and_the_last_one_kept_while_it_cant_be(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(URL)
    settings = load_settings({"CLUSTER_DATABASE_URL_FILE": str(file)})
    assert settings.read_database_url() == settings.read_direct_database_url() == URL
    rotated = URL.replace("geheim", "neu")
    file.write_text(rotated)
    assert settings.read_database_url() == settings.read_direct_database_url() == rotated
    for broken in ("", "postgresql://app:geheim@db/app?half"):
        file.write_text(broken)
        assert settings.read_database_url() == URL
    file.unlink()
    assert settings.read_database_url() == URL


def test_an_application_that_enqueues_needs_the_databases_url_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_DATABASE_URL", URL)
    for name in ("CLUSTER_CONCURENCY", "CLUSTER_NAME", "CLUSTER_LEASE"):
        monkeypatch.setenv(name, "x")
    assert database_url() == URL
