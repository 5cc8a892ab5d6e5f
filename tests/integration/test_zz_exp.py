import time
import psycopg, pytest
from tests.integration.conftest import RunNode
from tests.integration.test_bad_input import refuse, insert, run, wait_status, job
from tests.support.nodes import wait_for, wait_until, log_tails
SRC = """
from cluster import Job
class AJob(Job):
    label: str = ""
    max_concurrency = None
    async def perform(self): ...
class BJob(Job):
    label: str = ""
    async def perform(self): ...
"""
FN = """CREATE FUNCTION nix_{t}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.label='bad' AND {c} THEN RETURN NULL; END IF; RETURN NEW; END$$;
CREATE TRIGGER nix BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION nix_{t}()"""

def test_two(conn, run_node):
    nodes = [run_node(SRC) for _ in range(2)]
    for t in ("a_jobs", "b_jobs"):
        refuse(conn, t, "NEW.status = 'running'")
    for i in range(30):
        for t in ("a_jobs", "b_jobs"):
            insert(conn, t, *(["", "bad", ""] * 5))
        time.sleep(0.02)
    for t in ("a_jobs", "b_jobs"):
        wait_for(conn, f"SELECT bool_and(status in ('succeeded','failed')), count(*) filter (where status='not_started') FROM {t}", timeout=60)
    assert [n.stop() for n in nodes] == [0, 0]

@pytest.mark.parametrize("t", ["a_jobs", "b_jobs"])
def test_null_claim(conn, run_node, t):
    node = run_node(SRC)
    run(conn, FN.format(t=t, c="NEW.status='running'"))
    bad, *good = insert(conn, t, "bad", *[""] * 20)
    wait_status(conn, t, "succeeded", *good)
    wait_status(conn, t, "succeeded", *insert(conn, t, *[""] * 20))
    print(job(conn, t, bad).status)
    t0 = time.monotonic()
    assert node.stop(40) == 0
    print("stop", time.monotonic() - t0)

def test_null_finish(conn, run_node):
    node = run_node(SRC)
    run(conn, FN.format(t="a_jobs", c="OLD.status='running'"))
    bad, *good = insert(conn, "a_jobs", "bad", *[""] * 20)
    wait_status(conn, "a_jobs", "succeeded", *good)
    wait_status(conn, "a_jobs", "succeeded", *insert(conn, "a_jobs", *[""] * 20))
    t0 = time.monotonic()
    assert node.stop(40) == 0
    print("stop", time.monotonic() - t0)
    assert 0
