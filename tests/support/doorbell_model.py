"""The doorbell as an explicit-state model: every interleaving of a few producers and coordinators, breadth first.

The model leaves out the looks that every node takes each 1 to 2 s. So whatever it loses is what those looks are there for.
A wake-up is lost in a state from which the cluster by itself, without help from its environment, never gets to a state where
nothing waits for a sleeper: a row could run, and no step of those who are awake will ever wake a node with room for it.

What the environment does, at any time or never: transactions insert, commit or roll back, jobs end, claims fail, nodes die,
start, stop, lose the listening connection, or are rung so often that they give up the watch. What follows from that is prompt.

One loss is allowed. Who is on watch, or has left the watch and told nobody yet, is on duty: the others sleep because it is
there. When it dies with its host, nobody is told. Until the next one goes on watch, rows wait for the periodic look.

Coarser than the code: one row for each insert, retry, release or rescue, which all do what an INSERT does; a ring reaches all
at once; the jobs of a node that dies are gone. Kinds of rows stand for the queues of one table, or for tables: a node without
slots for a kind does not serve its queue, one with all slots of a kind taken has no room for its table. Since kinds do
not share slots, who frees a limit always has room for what waits, unless that is in another queue. Watches are sets of bits, one
for each table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple, TypeAlias


class Rule(Enum):
    """What the protocol asks for. Leaving out any one loses a wake-up."""

    LOCK_UNTIL_COMMIT = "a producer holds the shared lock to the end of its transaction"
    LISTEN_FIRST = "LISTEN comes before the watch"
    SECOND_LOOK = "who has gone on watch looks once more before it sleeps"
    PRODUCERS_KEEP_AWAKE = "who cannot go on watch because of producers stays awake"
    LOCKED_ROWS_KEEP_AWAKE = "a row that another claim holds still counts as there: that claim may roll back"
    RINGS_ARE_KEPT = "a ring that comes while its hearer works ends its next sleep at once"
    HAND_OVER_WHEN_FULL = "who is on watch and has no room for what waits calls the others"
    LEAVE_BEFORE_CALL = "it leaves the watch before it calls: who is called must be able to go on watch"
    ROOM_WAKES = "a node that had no room for what waits looks when it gets some"
    A_CUT_WAKES = "who has lost the listening connection has lost the watch: it looks, and listens anew"
    FREED_LIMIT_WAKES_ITSELF = "whose job of a limited type ends looks there"
    SILENT_LEAVER_CALLS = (
        "who gave up the watch without a call, being rung often or cut off, still calls when it is full"
    )
    STOPPING_CALLS = "who stops while it is on watch calls the others"
    FOREIGN_ROWS_ARE_CALLED = "who finds a new row at the head of a queue that it does not serve calls the others"
    FULL_FOR_ONE_TABLE_WATCHES_ON = "who has no room for one table only leaves the watch of that one only"
    SILENCE_COMES_AFTER_THE_WATCH = (
        "who is on watch for a table leaves it out of a look only if it has looked there since"
    )
    A_RING_ENDS_SILENCE = "who is rung for a table looks there, and whoever is called looks everywhere"


class Setup(NamedTuple):
    """inserts: the kind of each producer's row. slots: for each coordinator, how many jobs of each kind it has room for."""

    inserts: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    tables: tuple[int, ...] = ()
    """Of each kind; (): all are of one."""
    limit: int | None = None
    """How many jobs of table 0 may run in the whole cluster."""
    deaths: bool = True
    cuts: bool = False
    stops: bool = False
    often: bool = False
    """Rings may come so often that one who is awake gives up the watch."""


# What a producer does: holds the shared lock; holds no lock, but a NOTIFY for its commit; neither (only without LOCK_UNTIL_COMMIT).
# After the row has become visible, the commit still has to let go of the lock, or to deliver the NOTIFY.
IDLE, SHARED, RING, BARE, SHOWN_SHARED, SHOWN_RING, DONE = range(7)

# What a coordinator does. LOOK, CLAIM, COMMIT, TRY, TRY_SHARED, SETTLE, LEAVE, CALL and LAST_CALL are awake: it does that next.
DOWN, ASLEEP, LOOK, CLAIM, COMMIT, TRY, TRY_SHARED, SETTLE, LEAVE, CALL, LAST_CALL = range(11)


class Coordinator(NamedTuple):
    """kind: of the row that it is claiming. watching, on_duty, passed: tables; passed: for whose rows it had no room.

    told: kinds of other queues at whose heads it has seen what is there; calls: one was new, and it is about to say so.
    empty: tables where its last look has found nothing for it; silent: those of them that its next look leaves out.
    """

    running: tuple[int, ...]
    phase: int = DOWN
    kind: int = 0
    watching: int = 0
    on_duty: int = 0
    passed: int = 0
    told: int = 0
    empty: int = 0
    silent: int = 0
    calls: bool = False
    listening: bool = False
    rung: bool = False
    wants_room: bool = False


Producer: TypeAlias = tuple[int, int]  # kind, what it does


class State(NamedTuple):
    """rows: committed, waiting and locked by nobody, by kind. orphaned: one on duty died, and nobody has gone on watch since."""

    rows: tuple[int, ...]
    producers: tuple[Producer, ...]
    coordinators: tuple[Coordinator, ...]
    orphaned: bool = False


Step: TypeAlias = tuple[str, int, State]
"""What happens, the number of the coordinator (-1: a producer), and what it leads to."""


class Result(NamedTuple):
    """lost: the steps to a lost wake-up, as text; None: there is none."""

    states: int
    lost: list[str] | None


class Model:
    """The protocol without some of its rules."""

    def __init__(self, setup: Setup, without: Iterable[Rule] = ()) -> None:
        self._setup = setup
        self._kinds = range(len(setup.slots[0]))
        self._tables = [1 << table for table in setup.tables or (0,) * len(self._kinds)]
        """Each kind's, as a bit."""
        self._all_tables = (1 << len(set(self._tables))) - 1
        self._all_alike = len(set(setup.slots)) == 1
        left_out = set(without)
        self._does: dict[int, Callable[[State, int, Coordinator], Step]] = {
            CLAIM: self._claim, COMMIT: self._commit, TRY: self._try, TRY_SHARED: self._try_shared, SETTLE: self._settle,
            LEAVE: self._leave, CALL: self._call, LAST_CALL: self._last_call,
        }  # fmt: skip
        self._has = {rule.name: rule not in left_out for rule in Rule}

    def search(self) -> Result:
        """Every state that can be reached, or those up to the first lost wake-up."""
        states = [self._start()]
        numbers = {self._alike(states[0]): 0}
        came_from: list[tuple[str, int, int]] = [("", -1, -1)]
        leads_to: list[list[int]] = []
        for number, state in enumerate(states):  # which grows meanwhile
            prompt = list(self._prompt(state))
            if not prompt and self._waits_for_a_sleeper(state):
                return Result(len(states), _story(came_from, number))
            afters = []
            for what, who, after in (*prompt, *self._environment(state)):
                known = numbers.setdefault(self._alike(after), len(states))
                if known == len(states):
                    states.append(after)
                    came_from.append((what, who, number))
                afters.append(known)
            leads_to.append(afters[: len(prompt)])
        never = self._never_served(states, leads_to)
        return Result(len(states), None if never is None else _story(came_from, never))

    def _start(self) -> State:
        setup = self._setup
        none: tuple[int, ...] = (0,) * len(self._kinds)
        producers = tuple(sorted((kind, IDLE) for kind in setup.inserts))
        return State(none, producers, tuple(Coordinator(none) for _ in setup.slots))

    def _alike(self, state: State) -> State:
        """The same for states that differ only in which is which of coordinators that all have the same slots."""
        if not self._all_alike:
            return state
        rows, producers, coordinators, orphaned = state
        return State(rows, producers, tuple(sorted(coordinators)), orphaned)

    # --- what must not be ---

    def _waits_for_a_sleeper(self, state: State) -> bool:
        """A row could be claimed at once, and a living coordinator has room for it. Not asked after a death on duty."""
        if state.orphaned or not any(state.rows):
            return False
        return any(
            state.rows[kind] and self._limit_has_room(state, kind) and self._someone_has_room(state, kind)
            for kind in self._kinds
        )

    def _someone_has_room(self, state: State, kind: int) -> bool:
        return any(
            it.phase not in (DOWN, LAST_CALL) and self._has_room(number, it, kind)
            for number, it in enumerate(state.coordinators)
        )

    def _has_room(self, number: int, it: Coordinator, kind: int) -> bool:
        return it.running[kind] < self._setup.slots[number][kind]

    def _limit_has_room(self, state: State, kind: int, *, open_claims: bool = False) -> bool:
        """open_claims: counted too, as under the mutex of a claim; a look does not see them."""
        if self._setup.limit is None or self._tables[kind] != 1:
            return True
        taken = sum(
            (other.running[each] + (open_claims and other.phase == COMMIT and other.kind == each))
            for other in state.coordinators
            for each in self._kinds
            if self._tables[each] == 1
        )
        return taken < self._setup.limit

    def _never_served(self, states: list[State], leads_to: list[list[int]]) -> int | None:
        """A state from which prompt steps alone never lead to one where nothing waits: those awake go round in circles."""
        comes_from: list[list[int]] = [[] for _ in states]
        for number, afters in enumerate(leads_to):
            for after in afters:
                comes_from[after].append(number)
        served = [not self._waits_for_a_sleeper(state) for state in states]
        queue = deque(number for number, is_served in enumerate(served) if is_served)
        while queue:
            for before in comes_from[queue.popleft()]:
                if not served[before]:
                    served[before] = True
                    queue.append(before)
        return None if all(served) else served.index(False)

    # --- producers: the INSERT and its trigger, COMMIT, ROLLBACK ---

    def _producers_environment(self, state: State) -> Iterator[Step]:
        for place, (kind, phase) in enumerate(state.producers):
            if phase == IDLE:
                watched = any(it.watching & self._tables[kind] for it in state.coordinators)
                lock = SHARED if self._has["LOCK_UNTIL_COMMIT"] else BARE
                yield "a producer inserts", -1, _produce(state, place, RING if watched else lock)
            elif phase in (SHARED, RING, BARE):
                after = {SHARED: SHOWN_SHARED, RING: SHOWN_RING, BARE: DONE}[phase]
                yield "a producer's row is visible", -1, _add_row(_produce(state, place, after), kind, 1)
                yield "a producer rolls back", -1, _produce(state, place, DONE)

    def _producers_prompt(self, state: State) -> Iterator[Step]:
        for place, (kind, phase) in enumerate(state.producers):
            if phase == SHOWN_SHARED:
                yield "a producer's lock is free", -1, _produce(state, place, DONE)
            elif phase == SHOWN_RING:
                yield "the doorbell rings", -1, self._ring(_produce(state, place, DONE), self._tables[kind])

    # --- coordinators: what they do of themselves ---

    def _prompt(self, state: State) -> Iterator[Step]:
        yield from self._producers_prompt(state)
        for number, it in enumerate(state.coordinators):
            if it.calls:
                yield self._call_for_foreign(state, number, it)
            elif it.phase == LOOK:
                yield from self._look(state, number, it)
            elif it.phase in self._does:
                yield self._does[it.phase](state, number, it)

    def _look(self, state: State, number: int, it: Coordinator) -> Iterator[Step]:
        """Then claims what it has room for, hands over what it has no room for, or goes on watch."""
        slots = self._setup.slots[number]
        looked_at = [kind for kind in self._kinds if not self._tables[kind] & it.silent]
        there = [kind for kind in looked_at if state.rows[kind] or self._locked(state, kind)]
        foreign = sum(1 << kind for kind in there if not slots[kind])
        calls = bool(foreign & ~it.told) and self._has["FOREIGN_ROWS_ARE_CALLED"]
        known = sum(1 << kind for kind in self._kinds if kind not in looked_at)
        empty = self._all_tables
        for kind in there:
            empty &= ~(self._tables[kind] if slots[kind] else 0)
        silent = it.silent | empty & it.watching
        it = it._replace(told=foreign | it.told & known, calls=calls, empty=empty, silent=silent)
        claimable = [kind for kind in there if slots[kind] and self._limit_has_room(state, kind)]
        mine = [kind for kind in claimable if self._has_room(number, it, kind)]
        for kind in mine:
            yield "sees a row", number, _put(state, number, it._replace(phase=CLAIM, kind=kind))
        if mine:
            return
        if not claimable:
            yield "sees nothing to do", number, self._watch_or_rest(state, number, it)
            return
        passed = 0
        for kind in claimable:
            passed |= self._tables[kind]
        it = it._replace(wants_room=True, passed=passed)
        yield "sees a row, has no room", number, self._hand_over(state, number, it)

    def _locked(self, state: State, kind: int) -> bool:
        return self._has["LOCKED_ROWS_KEEP_AWAKE"] and any(
            it.phase == COMMIT and it.kind == kind for it in state.coordinators
        )

    def _hand_over(self, state: State, number: int, it: Coordinator) -> State:
        if it.watching & self._left(it):
            if not self._has["HAND_OVER_WHEN_FULL"]:
                return self._rest(state, number, it)
            return _put(state, number, it._replace(phase=LEAVE if self._has["LEAVE_BEFORE_CALL"] else CALL))
        if it.on_duty & it.passed and self._has["SILENT_LEAVER_CALLS"]:
            return _put(state, number, it._replace(phase=CALL))
        return self._after_hand_over(state, number, it)

    def _left(self, it: Coordinator) -> int:
        """Tables whose watch it leaves."""
        return it.passed if self._has["FULL_FOR_ONE_TABLE_WATCHES_ON"] else self._all_tables

    def _after_hand_over(self, state: State, number: int, it: Coordinator) -> State:
        """Rests, or goes on watch for the tables that it has room for."""
        full = not any(self._has_room(number, it, kind) for kind in self._kinds)
        if full or not self._has["FULL_FOR_ONE_TABLE_WATCHES_ON"]:
            return self._rest(state, number, it)
        return self._watch_or_rest(state, number, it)

    def _leave(self, state: State, number: int, it: Coordinator) -> Step:
        left = it._replace(watching=it.watching & ~self._left(it), silent=it.silent & ~self._left(it))
        if self._has["LEAVE_BEFORE_CALL"]:
            return "leaves the watch", number, _put(state, number, left._replace(phase=CALL))
        on_duty = it.on_duty & ~self._left(it)
        return "leaves the watch", number, self._after_hand_over(state, number, left._replace(on_duty=on_duty))

    def _call(self, state: State, number: int, it: Coordinator) -> Step:
        """To all others, on watch or not."""
        called = self._call_others(state, number)
        if it.watching & self._left(it):  # only without LEAVE_BEFORE_CALL
            return "calls the others", number, _put(called, number, it._replace(phase=LEAVE))
        it = it._replace(on_duty=it.on_duty & ~self._left(it))
        return "calls the others", number, self._after_hand_over(called, number, it)

    def _call_for_foreign(self, state: State, number: int, it: Coordinator) -> Step:
        """Stays on watch, and goes on with what it was about to do."""
        called = self._call_others(state, number)
        return "calls for other queues", number, _put(called, number, it._replace(calls=False))

    def _last_call(self, state: State, number: int, it: Coordinator) -> Step:
        called = self._call_others(state, number)
        return "calls the others and ends", number, _put(called, number, Coordinator((0,) * len(it.running)))

    def _claim(self, state: State, number: int, it: Coordinator) -> Step:
        if not state.rows[it.kind] or not self._limit_has_room(state, it.kind, open_claims=True):
            return "cannot have the row", number, _put(state, number, it._replace(phase=LOOK))
        locked = _add_row(state, it.kind, -1)
        return "locks the row", number, _put(locked, number, it._replace(phase=COMMIT))

    def _commit(self, state: State, number: int, it: Coordinator) -> Step:
        """Whatever is at the queue's head now is new to all."""
        for place, other in enumerate(state.coordinators):
            if other.told >> it.kind & 1:
                state = _put(state, place, other._replace(told=other.told & ~(1 << it.kind)))
        it = state.coordinators[number]
        running = _changed(it.running, it.kind, 1)
        return "has claimed", number, _put(state, number, it._replace(phase=LOOK, running=running))

    def _watch_or_rest(self, state: State, number: int, it: Coordinator) -> State:
        return _put(state, number, it._replace(phase=TRY if self._unwatched(it) else SETTLE))

    def _unwatched(self, it: Coordinator) -> int:
        return self._all_tables & ~it.watching & ~it.passed

    def _try(self, state: State, number: int, it: Coordinator) -> Step:
        """The exclusive lock. Whoever else holds it, or holds it shared, is in the way."""
        if not it.listening and self._has["LISTEN_FIRST"]:
            return (
                "listens",
                number,
                _put(state, number, it._replace(phase=LOOK, listening=True)),
            )  # may have missed a call
        taken = 0
        for other in state.coordinators:
            taken |= other.watching
        for kind, phase in state.producers:
            taken |= self._tables[kind] if phase in (SHARED, SHOWN_SHARED) else 0
        new = self._unwatched(it) & ~taken
        if not new:
            return "cannot go on watch", number, _put(state, number, it._replace(phase=TRY_SHARED))
        it = self._on_watch(it, new)
        state = state._replace(orphaned=False)
        if self._has["SECOND_LOOK"]:
            return "goes on watch", number, _put(state, number, it._replace(phase=LOOK))
        return "goes on watch", number, self._rest(state, number, it)

    def _on_watch(self, it: Coordinator, new: int) -> Coordinator:
        silent = it.silent & ~new if self._has["SILENCE_COMES_AFTER_THE_WATCH"] else it.silent | it.empty & new
        return it._replace(watching=it.watching | new, on_duty=it.on_duty | new, silent=silent)

    def _try_shared(self, state: State, number: int, it: Coordinator) -> Step:
        """Tells producers from another one on watch."""
        watched = 0
        for other in state.coordinators:
            watched |= other.watching
        producers = self._unwatched(it) & ~watched
        on_duty = it.on_duty & (it.watching | it.passed | producers)
        it = it._replace(on_duty=on_duty, silent=it.silent | it.empty & self._unwatched(it) & watched)
        if not producers:
            return "finds another on watch", number, self._rest(state, number, it)
        if self._has["PRODUCERS_KEEP_AWAKE"]:
            return "finds producers only", number, _put(state, number, it._replace(phase=LOOK))
        return "finds producers only", number, self._rest(state, number, it)

    def _settle(self, state: State, number: int, it: Coordinator) -> Step:
        return "goes to sleep", number, self._rest(state, number, it._replace(listening=True))

    def _rest(self, state: State, number: int, it: Coordinator) -> State:
        if it.calls or (not it.listening and not self._has["LISTEN_FIRST"]):
            return _put(state, number, it._replace(phase=SETTLE))
        awake = it.rung and self._has["RINGS_ARE_KEPT"]
        return _put(state, number, it._replace(phase=LOOK if awake else ASLEEP, rung=False, passed=0, empty=0))

    # --- who wakes whom ---

    def _ring(self, state: State, table: int) -> State:
        for number, it in enumerate(state.coordinators):
            if it.listening and it.watching & table:
                state = _wake(self._end_silence(state, number, table), number)
        return state

    def _call_others(self, state: State, caller: int) -> State:
        for number, it in enumerate(state.coordinators):
            if number != caller and it.listening:
                state = _wake(self._end_silence(state, number, self._all_tables), number)
        return state._replace(orphaned=False)

    def _end_silence(self, state: State, number: int, tables: int) -> State:
        if not self._has["A_RING_ENDS_SILENCE"]:
            return state
        it = state.coordinators[number]
        return _put(state, number, it._replace(silent=it.silent & ~tables, empty=it.empty & ~tables))

    # --- the environment ---

    def _environment(self, state: State) -> Iterator[Step]:
        yield from self._producers_environment(state)
        for number, it in enumerate(state.coordinators):
            if it.phase == DOWN:
                yield "starts", number, _put(state, number, it._replace(phase=LOOK))
                continue
            for kind in self._kinds:
                if it.running[kind]:
                    yield "ends a job", number, self._end_job(state, number, kind)
            if it.phase == COMMIT:
                back = _add_row(state, it.kind, 1)
                yield "rolls its claim back", number, _put(back, number, it._replace(phase=LOOK))
            if self._setup.deaths:
                yield "dies", number, self._die(state, number, it)
            if self._setup.cuts and it.listening:
                yield "loses its listening connection", number, self._cut(state, number, it)
            if self._setup.stops and it.phase in (LOOK, ASLEEP):
                yield "stops", number, self._stop(state, number, it)
            if self._setup.often and it.phase == LOOK and it.watching:
                given_up = it._replace(watching=0, silent=it.silent & ~it.watching)
                yield "gives up the watch, rung often", number, _put(state, number, given_up)
            if it.phase == LOOK and it.listening:
                yield from self._watch_while_busy(state, number, it)

    def _watch_while_busy(self, state: State, number: int, it: Coordinator) -> Iterator[Step]:
        """Of one table, among others; it looks there before it leaves it out."""
        for table in {*self._tables} if len({*self._tables}) > 1 else ():
            taken = any(other.watching & table for other in state.coordinators)
            taken |= any(
                self._tables[kind] == table for kind, phase in state.producers if phase in (SHARED, SHOWN_SHARED)
            )
            if not taken:
                watching = _put(state, number, self._on_watch(it, table))
                yield "goes on watch for a table, being busy", number, watching._replace(orphaned=False)

    def _end_job(self, state: State, number: int, kind: int) -> State:
        it = state.coordinators[number]
        state = _put(state, number, it._replace(running=_changed(it.running, kind, -1)))
        if it.wants_room and self._has["ROOM_WAKES"]:
            state = _wake(state, number)
        limited = self._setup.limit is not None and self._tables[kind] == 1
        if not limited or not self._has["FREED_LIMIT_WAKES_ITSELF"]:
            return state
        return _wake(self._end_silence(state, number, self._tables[kind]), number)

    def _die(self, state: State, number: int, it: Coordinator) -> State:
        """Its locks are free, its open claim is rolled back."""
        if it.phase == COMMIT:
            state = _add_row(state, it.kind, 1)
        after = _put(state, number, Coordinator((0,) * len(it.running)))
        return after._replace(orphaned=state.orphaned or it.on_duty > 0)

    def _cut(self, state: State, number: int, it: Coordinator) -> State:
        after = _put(state, number, it._replace(watching=0, silent=0, empty=0, listening=False))
        return _wake(after, number) if self._has["A_CUT_WAKES"] else after

    def _stop(self, state: State, number: int, it: Coordinator) -> State:
        if it.on_duty and self._has["STOPPING_CALLS"]:
            return _put(state, number, it._replace(phase=LAST_CALL, watching=0, silent=0, calls=False))
        return _put(state, number, Coordinator((0,) * len(it.running)))


# --- parts of a state ---


def _put(state: State, number: int, it: Coordinator) -> State:
    if it.phase == LOOK:  # what it knew from before does not matter any more
        it = Coordinator(
            it.running, LOOK, 0, it.watching, it.on_duty, 0, it.told, silent=it.silent, listening=it.listening
        )
    rows, producers, before, orphaned = state
    return State(rows, producers, (*before[:number], it, *before[number + 1 :]), orphaned)


def _produce(state: State, place: int, phase: int) -> State:
    """Producers are alike, so their order does not matter."""
    rows, producers, coordinators, orphaned = state
    others = (*producers[:place], *producers[place + 1 :])
    return State(rows, tuple(sorted((*others, (producers[place][0], phase)))), coordinators, orphaned)


def _add_row(state: State, kind: int, count: int) -> State:
    return state._replace(rows=_changed(state.rows, kind, count))


def _changed(counts: tuple[int, ...], kind: int, by: int) -> tuple[int, ...]:
    return (*counts[:kind], counts[kind] + by, *counts[kind + 1 :])


def _wake(state: State, number: int) -> State:
    it = state.coordinators[number]
    if it.phase in (DOWN, LOOK):
        return state
    return _put(state, number, it._replace(phase=LOOK) if it.phase == ASLEEP else it._replace(rung=True))


def _story(came_from: list[tuple[str, int, int]], number: int) -> list[str]:
    story = []
    while number:
        what, who, number = came_from[number]
        story.append(what if who < 0 else f"node {who} {what}")
    return story[::-1]
