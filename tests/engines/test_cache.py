"""The request cache by itself: what it keeps, for how long, with whom it is shared, and what it says of damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rerank.engines import cache as module
from rerank.engines.cache import NUMBER, RequestCache, Stored, file_system, open_cache, request_key
from rerank.errors import ArtifactError, CorruptArtifactError, NewerArtifactError

DAY = 86_400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "requests"


@pytest.fixture
def cache(folder: Path) -> RequestCache:
    return RequestCache(folder)


def keys(n: int, verb: str = "pairs") -> list[bytes]:
    return [request_key("model", verb, str(i)) for i in range(n)]


# -- answers ------------------------------------------------------------


def test_what_is_put_is_found_again_in_another_process_s_cache(cache: RequestCache, folder: Path) -> None:
    some = keys(3)
    assert cache.get(some) == [None, None, None]
    assert cache.put(dict(zip(some, (b"a", b"", b"c"), strict=True))) == [b"a", b"", b"c"]
    assert RequestCache(folder).get([some[2], b"other", some[0], some[1], some[2]]) == [b"c", None, b"a", b"", b"c"]


def test_the_first_answer_stays_and_is_given_to_whoever_comes_later(cache: RequestCache, folder: Path) -> None:
    one, two = keys(2)
    cache.put({one: b"first"})
    assert RequestCache(folder).put({two: b"new", one: b"second"}) == [b"new", b"first"]
    assert cache.get([one, two]) == [b"first", b"new"]


def test_answers_of_a_batch_are_stored_together_or_not_at_all(cache: RequestCache) -> None:
    some = keys(3)
    with pytest.raises(ArtifactError):
        cache.put({some[0]: b"a", some[1]: b"b", some[2]: None})  # type: ignore[dict-item]
    assert cache.get(some) == [None] * 3
    assert cache.put({some[0]: b"a"}) == [b"a"]


def test_more_keys_than_sqlite_takes_at_once(cache: RequestCache) -> None:
    many = keys(40_000)
    cache.put({key: key[:4] for key in many})
    assert cache.get(many) == [key[:4] for key in many]


def test_nothing_is_asked_of_no_keys(cache: RequestCache) -> None:
    assert (cache.get([]), cache.put({})) == ([], [])


def test_parts_of_a_request_do_not_run_into_each_other() -> None:
    made = {
        request_key("model", "pairs", "ab", "c"),
        request_key("model", "pairs", "a", "bc"),
        request_key("model", "pairs", "abc"),
        request_key("model", "pairs", "abc", ""),
        request_key("modelp", "airs", "abc"),
        request_key("model", "pairs", b"\xff", "\ud800"),
    }
    assert len(made) == 6
    assert {len(key) for key in made} == {32}


def test_a_partly_answered_batch_is_no_answer_and_what_is_stored_wins(cache: RequestCache) -> None:
    stored = Stored(cache, [*keys(3), keys(1)[0]], NUMBER)
    assert stored.put([1], [0.5]) == [0.5]
    assert stored.get([0, 1]) is None
    assert stored.put([0, 1, 3], [0.25, 0.5000001, 0.75]) == [0.25, 0.5, 0.25]  # 3 asks the same as 0
    assert stored.get([3, 1]) == [0.25, 0.5]
    assert stored.get([]) == []


# -- sharing ------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from rerank.engines.cache import RequestCache, request_key

cache, who = RequestCache(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()  # all start together
for i in range(0, 300, 3):
    own = [request_key("model", who, str(i + j)) for j in range(3)]
    shared = request_key("model", "shared", str(i))
    kept = cache.put({**{key: who.encode() for key in own}, shared: who.encode()})
    assert cache.get([*own, shared]) == kept
"""


def test_two_processes_on_one_cache_lose_nothing(folder: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(folder)]
    writers = [subprocess.Popen([*command, who], stdin=subprocess.PIPE, text=True) for who in ("one", "two")]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    cache = RequestCache(folder)
    for who in ("one", "two"):
        assert cache.get(keys(300, who)) == [who.encode()] * 300
    assert set(cache.get(keys(300, "shared")[::3])) <= {b"one", b"two"}
    assert cache.contents().n_answers == 700


def test_threads_share_a_cache(cache: RequestCache) -> None:
    def write(who: str) -> None:
        for i in range(50):
            cache.put({request_key("model", who, str(i)): b"x"})

    threads = [threading.Thread(target=write, args=(f"thread {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.contents().n_answers == 200


def test_on_a_network_file_system_every_process_writes_its_own_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "file_system", lambda folder: "nfs4")
    one, two, three = keys(3)
    first = RequestCache(folder)
    monkeypatch.setattr(os, "getpid", lambda: 12)
    second = RequestCache(folder)
    assert first.put({one: b"1"}) == [b"1"]
    assert second.put({one: b"late", two: b"2"}) == [b"1", b"2"]
    assert first.get([one, two, three]) == [b"1", b"2", None]
    names = [path.name for path in first.contents().files]
    assert len(names) == 2
    assert names[0].endswith(".12.sqlite") or names[1].endswith(".12.sqlite")
    assert sorted(path.name for path in folder.iterdir()) == names  # no log in shared memory
    assert first.contents().n_answers == 2
    assert first.prune(max_bytes=0) == 2
    assert second.get([one, two]) == [None, None]


def test_on_a_network_file_system_files_that_nobody_writes_keep_to_the_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "file_system", lambda folder: "cifs")
    for pid in (11, 12, 13):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        RequestCache(folder).close()
    oldest, older, new = sorted(folder.iterdir())
    size = new.stat().st_size
    for path, days in ((oldest, 20), (older, 10), (new, 1)):
        os.utime(path, (0, time.time() - days * DAY))
    monkeypatch.setattr(os, "getpid", lambda: 14)
    own = RequestCache(folder, max_bytes=2 * size).contents()
    assert oldest not in own.files
    assert {older, new} < set(own.files)
    RequestCache(folder, max_bytes=size // 2)
    assert sorted(folder.iterdir()) == [new, *(path for path in own.files if path.name.endswith(".14.sqlite"))]


@pytest.mark.parametrize("kind", ["nfs4", "nfs", "cifs", "smb3", "9p", "fuse.sshfs", "lustre", "ceph", "beegfs"])
def test_network_file_systems_are_known(kind: str) -> None:
    assert module._NETWORK.match(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "fuseblk", ""])
def test_other_file_systems_are_local(kind: str) -> None:
    assert not module._NETWORK.match(kind)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").is_file(), reason="Linux says what is mounted where")
def test_the_file_system_of_a_folder_is_found() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/")) != ""


# -- time and room ------------------------------------------------------------


def test_answers_that_are_too_old_count_no_more_and_are_replaced(cache: RequestCache) -> None:
    one, two = keys(2)
    cache.put({one: b"old"})
    later = time.time() + 10
    assert cache.get([one], not_before=later) == [None]
    assert cache.get([one], not_before=later - 20) == [b"old"]
    assert cache.put({one: b"other", two: b"new"}) == [b"old", b"new"]
    # An answer from now is too old for `later`, too: it is replaced, and the replacement is what is stored.
    since = time.time()
    assert cache.put({one: b"fresh"}, not_before=since) == [b"fresh"]
    assert cache.get([one], not_before=since) == [b"fresh"]


def test_the_least_recently_used_answers_go_first(cache: RequestCache, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = keys(100, "old"), keys(100, "new")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 20 * DAY)
    cache.put(dict.fromkeys(old, b"1234"))
    monkeypatch.setattr(time, "time", lambda: now - 10 * DAY)
    cache.put(dict.fromkeys(new, b"1234"))
    monkeypatch.setattr(time, "time", lambda: now)
    assert cache.get(old[:20]) == [b"1234"] * 20
    assert cache.prune(max_bytes=40 * (4 + module._ROW_BYTES)) == 160
    assert cache.get(old) == [b"1234"] * 20 + [None] * 80
    assert cache.get(new).count(b"1234") == 20
    # The twenty old ones were used today, those of `new` too by now.
    monkeypatch.setattr(time, "time", lambda: now + 3 * DAY)
    assert cache.get(old[:5]) == [b"1234"] * 5
    assert cache.prune(unused_days=3) == 35
    assert cache.contents().n_answers == 5
    assert cache.prune(max_bytes=0) == 5
    assert cache.contents().oldest is None


def test_reading_writes_the_day_of_use_once_a_day(cache: RequestCache, monkeypatch: pytest.MonkeyPatch) -> None:
    some, now = keys(10), time.time()
    cache.put(dict.fromkeys(some, b"x"))
    changes = cache._open[cache._own]

    def written() -> int:
        before = changes.total_changes
        cache.get(some)
        return changes.total_changes - before

    assert written() == 0
    monkeypatch.setattr(time, "time", lambda: now + DAY)
    assert (written(), written()) == (10, 0)


def test_a_cache_keeps_to_its_bound(folder: Path) -> None:
    cache = RequestCache(folder, max_bytes=200_000)
    for i in range(100):
        batch = {request_key("model", "pairs", f"{i} {j}"): b"1234" for j in range(50)}
        assert cache.put(batch) == [b"1234"] * 50
        assert cache.get(list(batch)) == [b"1234"] * 50  # what comes in stays
    rows = 200_000 // (module._ROW_BYTES + 4)
    assert 0.9 * rows <= cache.contents().n_answers <= rows
    cache.prune()
    assert cache.contents().n_bytes < 250_000


def test_the_count_of_bytes_is_that_of_the_rows(cache: RequestCache) -> None:
    one, two, three = keys(3)
    cache.put({one: b"12", two: b"1", three: b""})
    cache.put({one: b"123456"}, not_before=time.time() + 1)
    cache.put({two: b"ignored"})
    with sqlite3.connect(cache._own) as connection:
        (counted,) = connection.execute("SELECT bytes FROM size").fetchone()
    connection.close()
    assert counted == 3 * module._ROW_BYTES + 6 + 1 + 0


# -- damage ------------------------------------------------------------


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\1" * 5000])
def test_a_file_that_is_no_database_is_named_and_left_alone(folder: Path, content: bytes) -> None:
    folder.mkdir()
    path = folder / "answers.sqlite"
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"answers\.sqlite: the request cache is damaged .*delete the file"):
        RequestCache(folder)
    assert path.read_bytes() == content


def test_a_file_that_lost_its_pages_is_named_when_they_are_read(cache: RequestCache, folder: Path) -> None:
    cache.put(dict.fromkeys(keys(5000), b"1234"))
    cache.prune()  # into the file, out of the log
    cache.close()
    path = folder / "answers.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptArtifactError, match="--no-cache"):
        RequestCache(folder).get(keys(5000))
    path.unlink()
    assert RequestCache(folder).get(keys(1)) == [None]


def test_a_later_layout_is_refused(cache: RequestCache, folder: Path) -> None:
    cache.close()
    with sqlite3.connect(folder / "answers.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(NewerArtifactError, match="layout 99, this rerank reads 1; upgrade rerank"):
        RequestCache(folder)


def test_a_folder_that_cannot_be_written_means_no_cache_and_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert open_cache(folder) is None
    assert "cannot be written: answers are not kept" in caplog.text
    assert not folder.exists()


def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(folder: Path) -> None:
    folder.write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"{folder}: cannot be made"):
        RequestCache(folder)
