"""Slots, and reading what is in them, whatever state it is in."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent, formatEvent

from twisted_proxy.record import entries, slots, spool
from twisted_proxy.record.entries import Closed, Kind, Noted, Opened
from twisted_proxy.record.exchange import PIECE, Mark, Role
from twisted_proxy.record.slots import Slot
from twisted_proxy.record.spool import Bulk, DamagedContent, Entry, SlotReader, SpoolContent

INSTANCE = "0" * 31 + "1"


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def name(number: int) -> str:
    return entries.exchange_id(key(number))


def opened(number: int) -> bytes:
    payload = entries.encode(Opened(received_at=number, method="POST", path="/v1/messages"))
    return b"".join(entries.frame(Kind.OPENED, key(number), payload))


def noted(number: int, status: int = 200) -> bytes:
    return b"".join(entries.frame(Kind.NOTED, key(number), entries.encode(Noted({"status": status}))))


def closed(number: int) -> bytes:
    return b"".join(entries.frame(Kind.CLOSED, key(number), entries.encode(Closed(verdict="complete"))))


def bulk(number: int, *pieces: bytes, role: Role = Role.ANSWER, times: list[int] | None = None) -> bytes:
    frames = entries.bulk_frames(entries.KINDS[role], key(number), pieces, times)
    return b"".join(part for frame in frames for part in frame)


class Spool:
    """A root with one slot, into which a test writes what a process would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.owner = Slot.create(root, INSTANCE)
        self.path = self.owner.path

    def segment(self, number: int) -> Path:
        return self.path / slots.file_name(number, slots.JOURNAL)

    def write(self, number: int, *frames: bytes) -> None:
        with self.segment(number).open("ab") as file:
            file.write(b"".join(frames))

    def reader(self, *, live: bool = False) -> SlotReader:
        return SlotReader(self.owner, live=live)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.suffix != ".lock")


@pytest.fixture
def held(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def kinds(found: Iterable[Entry]) -> list[tuple[str, type]]:
    return [(entry.exchange, type(entry.what)) for entry in found]


def contents(found: Iterable[Entry], number: int, role: Role = Role.ANSWER) -> SpoolContent:
    return SpoolContent(
        [
            entry.what.extent
            for entry in found
            if entry.exchange == name(number) and isinstance(entry.what, Bulk) and entry.what.role is role
        ]
    )


def told(logs: list[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in logs]


class TestReading:
    def test_entries_come_in_order(self, held: Spool) -> None:
        """Over all segments, each entry with its exchange; data of bodies is named and not loaded."""
        held.write(1, opened(1), bulk(1, b"question", role=Role.REQUEST), opened(2), noted(1))
        held.write(2, bulk(1, b"answer"), closed(1), closed(2))
        reader = held.reader()
        found = reader.read()
        assert kinds(found) == [
            (name(1), Opened),
            (name(1), Bulk),
            (name(2), Opened),
            (name(1), Noted),
            (name(1), Bulk),
            (name(1), Closed),
            (name(2), Closed),
        ]
        assert contents(found, 1, Role.REQUEST).read() == b"question"
        assert contents(found, 1).read() == b"answer"
        assert reader.ended

    def test_so_many_and_no_more(self, held: Spool) -> None:
        """A reader takes what it can handle, and the rest later."""
        held.write(1, opened(1), noted(1), noted(1))
        held.write(2, noted(1), closed(1))
        reader = held.reader()
        sizes = []
        while found := reader.read(2):
            sizes.append(len(found))
        assert sizes == [2, 2, 1]

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(st.data())
    def test_any_cut_gives_the_entries_before_it(self, held: Spool, data: st.DataObject) -> None:
        """A segment that ends in the middle has the entries that are whole, and no more."""
        frames = [opened(1), bulk(1, b"x" * 90, b"y", times=[1, 2]), noted(1), bulk(1, b""), opened(2), closed(1)]
        whole = b"".join(frames)
        cut = data.draw(st.integers(0, len(whole)))
        held.segment(1).write_bytes(whole[:cut])
        reader = held.reader()
        count = len(reader.read())
        assert sum(map(len, frames[:count])) <= cut
        assert count == len(frames) or cut < sum(map(len, frames[: count + 1]))
        assert reader.ended
        assert not reader.damaged

    @pytest.mark.parametrize("chunk", [spool.CHUNK, 64])
    def test_a_segment_is_read_as_it_grows(self, held: Spool, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
        """What is torn at the end of a living slot is waited for: byte by byte gives what the whole gives."""
        monkeypatch.setattr(spool, "CHUNK", chunk)
        whole = opened(1) + bulk(1, b"x" * 200, b"y", times=[1, 2]) + noted(1) + closed(1)
        reader = held.reader(live=True)
        found = []
        for index in range(len(whole)):
            held.write(1, whole[index : index + 1])
            found += reader.read()
        assert kinds(found) == [(name(1), each) for each in (Opened, Bulk, Noted, Closed)]
        assert contents(found, 1).read() == b"x" * 200 + b"y"
        assert not reader.ended
        assert not reader.unread
        reader.owner_ended()
        assert reader.read() == []
        assert reader.ended

    def test_what_is_torn_ends_a_segment_that_is_followed(self, held: Spool, logs: list[LogEvent]) -> None:
        """After a failure the owner goes on in another segment, and so does the reader of a living slot."""
        held.write(1, opened(1), noted(1)[:-1])
        reader = held.reader(live=True)
        assert len(reader.read()) == 1
        held.write(2, closed(1))
        assert kinds(reader.read()) == [(name(1), Closed)]
        assert any("was not written to its end" in line for line in told(logs))
        assert not reader.damaged

    def test_long_entries_are_read(self, held: Spool) -> None:
        """An entry may be longer than what is read at a time."""
        headers = (("a", "x" * spool.CHUNK),)
        payload = entries.encode(Opened(received_at=1, method="GET", path="/", request_headers=headers))
        held.write(1, opened(2), b"".join(entries.frame(Kind.OPENED, key(1), payload)), closed(1))
        found = held.reader().read()
        assert kinds(found) == [(name(2), Opened), (name(1), Opened), (name(1), Closed)]
        assert isinstance(found[1].what, Opened)
        assert found[1].what.request_headers == headers

    def test_entries_without_a_beginning_are_left_out(self, held: Spool) -> None:
        """Their exchange was settled before the reader started, or its first entry is lost."""
        held.write(1, bulk(1, b"x"), noted(1), closed(1), opened(2))
        assert kinds(held.reader().read()) == [(name(2), Opened)]

    def test_an_entry_of_another_version_is_left_out(self, held: Spool, logs: list[LogEvent]) -> None:
        """It is told, and does not keep others from being read."""
        held.write(1, opened(1), b"".join(entries.frame(Kind.NOTED, key(1), b"\xc1")), closed(1))
        assert kinds(held.reader().read()) == [(name(1), Opened), (name(1), Closed)]
        assert any("NOTED cannot be read" in line for line in told(logs))

    def test_a_shortage_loses_nothing(self, held: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process without a free descriptor says nothing about a file: the next call reads it."""
        held.write(1, opened(1))
        held.write(2, closed(1))
        reader = held.reader()
        really: Callable[..., int] = os.open

        def short(path: Path, flags: int, mode: int = 0o777) -> int:
            if path == held.segment(2):
                raise OSError(errno.EMFILE, "Too many open files")
            return really(path, flags, mode)

        monkeypatch.setattr(os, "open", short)
        assert kinds(reader.read()) == [(name(1), Opened)]
        with pytest.raises(OSError, match="Too many open files"):
            reader.read()
        assert not reader.ended
        monkeypatch.undo()
        assert kinds(reader.read()) == [(name(1), Closed)]
        assert not reader.damaged

    def test_what_is_unread_is_counted(self, held: Spool) -> None:
        """Bytes, over all segments."""
        held.write(1, opened(1))
        held.write(2, closed(1))
        reader = held.reader()
        assert reader.unread == len(opened(1)) + len(closed(1))
        reader.read(1)
        assert reader.unread == len(closed(1))


class TestDamage:
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(st.data())
    def test_any_damage_costs_what_follows_at_most(self, held: Spool, data: st.DataObject) -> None:
        """
        Whatever bytes are changed: nothing raises, reading ends, the entries before them are as they were, and of
        data that is not as it was nothing is believed.
        """
        frames = [opened(1), bulk(1, b"abc", b"de", times=[1, 2]), noted(1), bulk(1, b"fgh", times=[3]), closed(1)]
        whole = bytearray(b"".join(frames))
        start = data.draw(st.integers(0, len(whole) - 1))
        garbage = data.draw(st.binary(min_size=1, max_size=40))
        whole[start : start + len(garbage)] = garbage
        held.segment(1).write_bytes(whole)
        held.segment(2).write_bytes(opened(2) + closed(2))
        reader = held.reader()
        found = reader.read()
        intact = next(index for index in range(len(frames) + 1) if sum(map(len, frames[: index + 1])) > start)
        assert kinds(found[:intact]) == [(name(1), each) for each in (Opened, Bulk, Noted, Bulk, Closed)][:intact]
        assert kinds(found[-2:]) == [(name(2), Opened), (name(2), Closed)]
        assert reader.ended
        for entry in found:
            if isinstance(entry.what, Bulk):
                with contextlib.suppress(DamagedContent):
                    assert SpoolContent([entry.what.extent]).read() in (b"abcde", b"fgh")

    def test_it_is_told_counted_and_kept(self, held: Spool, logs: list[LogEvent]) -> None:
        """The log says which file, where, and what that means; the file is kept when all in it is settled."""
        held.write(1, opened(1), b"\0" * 100)
        held.write(2, opened(2), closed(2))
        reader = held.reader()
        assert kinds(reader.read()) == [(name(1), Opened), (name(2), Opened), (name(2), Closed)]
        assert reader.damaged == 1
        aside = held.root / f"{INSTANCE}-000000000001.journal.damaged"
        (line,) = (line for line in told(logs) if "damaged" in line)
        assert str(held.segment(1)) in line
        assert f"byte {len(opened(1))} of {len(opened(1)) + 100}" in line
        assert str(aside) in line
        assert not aside.exists()
        reader.settle([name(1), name(2)])
        assert aside.read_bytes() == opened(1) + b"\0" * 100
        assert held.files() == []

    def test_a_living_slot_goes_on_in_its_next_segment(self, held: Spool) -> None:
        """What is appended behind the damage is lost; a new segment is read."""
        held.write(1, opened(1), b"\0" * 100)
        reader = held.reader(live=True)
        assert len(reader.read()) == 1
        held.write(1, noted(1))
        assert reader.read() == []
        held.write(2, closed(1))
        assert kinds(reader.read()) == [(name(1), Closed)]

    def test_a_file_that_cannot_be_read_is_damaged(self, held: Spool) -> None:
        """What the kernel refuses ends that segment, not the reading."""
        held.segment(1).mkdir()
        held.write(2, opened(2))
        reader = held.reader()
        assert kinds(reader.read()) == [(name(2), Opened)]
        assert reader.damaged == 1

    def test_damaged_data_is_found_when_it_is_loaded(self, held: Spool) -> None:
        """Reading passes over data; its checksum is looked at when it is wanted."""
        held.write(1, opened(1), bulk(1, b"0123456789", times=[1]), closed(1))
        data = held.segment(1).read_bytes()
        held.segment(1).write_bytes(data.replace(b"0123456789", b"012345x789"))
        reader = held.reader()
        content = contents(reader.read(), 1)
        assert content.size == 10
        for load in (content.read, content.marks, lambda: list(content.pieces())):
            with pytest.raises(DamagedContent, match=f"damaged at byte {len(opened(1))}"):
                load()
        assert not reader.damaged

    def test_a_file_that_is_gone(self, held: Spool) -> None:
        """Somebody deleted it: the content is damaged, in words."""
        held.write(1, opened(1), bulk(1, b"x"))
        content = contents(held.reader().read(), 1)
        held.segment(1).unlink()
        with pytest.raises(DamagedContent, match="is not there any more"):
            content.read()


class TestContent:
    def test_it_is_what_was_written(self, held: Spool) -> None:
        """All bytes in order, no piece larger than `PIECE`, each time with the bytes that were there."""
        held.write(1, opened(1), bulk(1, b"ab", b"c", times=[7, 9]), bulk(1, b"x" * (PIECE + 3), times=[11]))
        content = contents(held.reader().read(), 1)
        expected = b"abc" + b"x" * (PIECE + 3)
        assert content.size == len(expected)
        assert content.read() == expected
        assert [len(piece) for piece in content.pieces()] == [3, PIECE, 3]
        assert content.marks() == (
            Mark(end=2, us=7),
            Mark(end=3, us=9),
            Mark(end=3 + PIECE, us=11),
            Mark(end=len(expected), us=11),
        )

    def test_data_without_times_has_no_marks(self, held: Spool) -> None:
        """Nobody asked when it was there."""
        held.write(1, opened(1), bulk(1, b"x", role=Role.REQUEST))
        content = contents(held.reader().read(), 1, Role.REQUEST)
        assert content.marks() == ()
        assert content.read() == b"x"

    def test_nothing_is_a_content(self) -> None:
        """A body of no bytes."""
        content = SpoolContent([])
        assert (content.size, content.read(), content.marks(), list(content.pieces())) == (0, b"", (), [])


class TestLettingGo:
    def test_files_go_when_all_in_them_is_settled(self, held: Spool) -> None:
        """The oldest first, and none before one that is older."""
        held.write(1, opened(1), opened(2))
        held.write(2, closed(2))
        held.write(3, closed(1))
        reader = held.reader()
        reader.read()
        reader.settle([name(2)])
        assert len(held.files()) == 3
        reader.settle([name(1)])
        assert held.files() == []

    def test_the_newest_stays_while_its_owner_lives(self, held: Spool) -> None:
        """It may be appended to at any time."""
        held.write(1, opened(1), closed(1))
        reader = held.reader(live=True)
        reader.read()
        reader.settle([name(1)])
        assert held.files() == ["000000000001.journal"]
        held.write(2, opened(2))
        reader.read()
        reader.settle([])
        assert held.files() == ["000000000002.journal"]
        reader.owner_ended()
        reader.settle([name(2)])
        assert reader.read() == []
        assert reader.ended
        reader.settle([])
        assert held.files() == []

    def test_what_was_settled_does_not_come_again(self, held: Spool) -> None:
        """A reader that starts again leaves out exchanges whose beginning is deleted."""
        held.write(1, opened(1))
        held.write(2, opened(2), closed(1))
        held.write(3, noted(2))
        reader = held.reader(live=True)
        reader.read()
        reader.settle([name(1)])
        assert held.files() == ["000000000002.journal", "000000000003.journal"]
        assert kinds(held.reader().read()) == [(name(2), Opened), (name(2), Noted)]

    def test_settling_what_is_not_known_is_nothing(self, held: Spool) -> None:
        """It may be told twice."""
        held.write(1, opened(1), closed(1))
        reader = held.reader(live=True)
        reader.settle([name(1)])
        assert kinds(reader.read()) == [(name(1), Opened), (name(1), Closed)]
        reader.settle([name(1), name(1), name(9)])
        reader.settle([name(1)])

    def test_a_file_that_cannot_be_deleted_is_told_once(self, held: Spool, logs: list[LogEvent]) -> None:
        """It is tried again at each settling; the reader goes on meanwhile."""
        held.write(1, opened(1), closed(1))
        held.write(2, opened(2))
        reader = held.reader()
        reader.read()
        held.segment(1).unlink()
        held.segment(1).mkdir()
        reader.settle([name(1)])
        reader.settle([])
        assert sum("cannot be deleted" in line for line in told(logs)) == 1
        held.segment(1).rmdir()
        reader.settle([name(2)])
        assert held.files() == []


def fill(held: Spool, segments: int = 7) -> None:
    """One exchange that is open all the time, and others that come and go, in so many segments."""
    for number in range(1, segments + 1):
        first = [opened(1)] if number == 1 else []
        held.write(number, *first, opened(number + 100), bulk(1, b"part %d;" % number, times=[number]))
        held.write(number, bulk(number + 100, b"x" * 5000), noted(1, number), closed(number + 100))


def settle_others(reader: SlotReader, found: Iterable[Entry]) -> None:
    reader.settle([entry.exchange for entry in found if isinstance(entry.what, Closed)])


class TestCheckpoint:
    def test_it_replaces_what_is_held_back_by_open_exchanges(self, held: Spool) -> None:
        """Their entries are in it, and what was known of their places is right afterwards."""
        fill(held)
        reader = held.reader(live=True)
        found = reader.read()
        before = contents(found, 1)
        settle_others(reader, found)
        assert len(held.files()) == 7
        assert reader.compact()
        assert held.files() == ["000000000006.checkpoint", "000000000007.journal"]
        assert (held.path / "000000000006.checkpoint").stat().st_mode & 0o777 == 0o600
        assert before.read() == b"".join(b"part %d;" % number for number in range(1, 8))
        assert [mark.us for mark in before.marks()] == [1, 2, 3, 4, 5, 6, 7]
        held.write(7, closed(1))
        assert kinds(reader.read()) == [(name(1), Closed)]
        held.write(8)
        reader.read()
        reader.settle([name(1)])
        assert held.files() == ["000000000008.journal"]

    def test_a_reader_begins_with_it(self, held: Spool) -> None:
        """The next one reads of what is open what this one read."""
        fill(held)
        reader = held.reader(live=True)
        found = reader.read()
        settle_others(reader, found)
        reader.compact()
        again = held.reader().read()
        assert [entry for entry in kinds(again) if entry[0] == name(1)] == [
            entry for entry in kinds(found) if entry[0] == name(1)
        ]
        assert contents(again, 1).read() == contents(found, 1).read()

    def test_it_is_replaced_by_the_next(self, held: Spool) -> None:
        """There is one at most."""
        fill(held)
        reader = held.reader(live=True)
        settle_others(reader, reader.read())
        assert reader.compact()
        for number in range(8, 14):
            held.write(number, opened(200 + number), bulk(200 + number, b"x" * 5000), closed(200 + number), noted(1))
        settle_others(reader, reader.read())
        assert reader.compact()
        assert held.files() == ["000000000012.checkpoint", "000000000013.journal"]
        assert contents(held.reader().read(), 1).read() == b"".join(b"part %d;" % number for number in range(1, 8))

    def test_not_for_few(self, held: Spool) -> None:
        """To copy costs more than some files do."""
        fill(held, spool.HELD_BACK + 1)
        reader = held.reader(live=True)
        settle_others(reader, reader.read())
        assert not reader.compact()

    def test_not_for_what_is_about_to_be_settled(self, held: Spool) -> None:
        """What is over will be stored: its files go then, uncopied."""
        fill(held)
        reader = held.reader(live=True)
        reader.read()
        assert not reader.compact()

    def test_not_when_most_is_needed(self, held: Spool) -> None:
        """Nothing would be gained."""
        held.write(1, opened(1))
        for number in range(2, 9):
            held.write(number, bulk(1, b"x" * 5000))
        reader = held.reader(live=True)
        reader.read()
        assert not reader.compact()

    def test_damage_is_not_copied(self, held: Spool, logs: list[LogEvent]) -> None:
        """What is not as it was written stays where it is."""
        fill(held)
        held.segment(2).write_bytes(held.segment(2).read_bytes().replace(b"part 2;", b"part x;"))
        reader = held.reader(live=True)
        settle_others(reader, reader.read())
        assert not reader.compact()
        assert len(held.files()) == 7
        assert any("000000000006.checkpoint cannot be written" in line for line in told(logs))

    @pytest.mark.parametrize("step", ["unfinished", "named", "some deleted"])
    def test_a_death_at_any_step_loses_nothing(self, held: Spool, tmp_path: Path, step: str) -> None:
        """Whatever is there when the reader dies, the next one reads the same, and cleans up."""
        fill(held)
        reader = held.reader(live=True)
        settle_others(reader, reader.read())
        before = tmp_path / "before"
        shutil.copytree(held.path, before)
        reader.compact()
        checkpoint = held.path / "000000000006.checkpoint"
        match step:
            case "unfinished":
                unfinished = held.path / "000000000006.checkpoint.new"
                unfinished.write_bytes(checkpoint.read_bytes()[:100])
                checkpoint.unlink()
                back = range(1, 7)
            case "named":
                back = range(1, 7)
            case _:
                back = range(4, 7)
        for number in back:
            shutil.copy(before / held.segment(number).name, held.segment(number))
        again = held.reader(live=True)
        found = again.read()
        assert contents(found, 1).read() == b"".join(b"part %d;" % number for number in range(1, 8))
        statuses = [entry.what.fields["status"] for entry in found if isinstance(entry.what, Noted)]
        assert statuses == [1, 2, 3, 4, 5, 6, 7]
        if step != "unfinished":
            assert held.files() == ["000000000006.checkpoint", "000000000007.journal"]
        assert not list(held.path.glob("*.new"))

    def test_a_full_disk_costs_the_checkpoint_only(self, held: Spool, logs: list[LogEvent]) -> None:
        """All stays as it was, and is tried again with the next segment."""
        fill(held)
        reader = held.reader(live=True)
        found = reader.read()
        settle_others(reader, found)
        unfinished = held.path / "000000000006.checkpoint.new"
        unfinished.symlink_to("/dev/full")
        assert not reader.compact()
        assert any("No space left on device" in line for line in told(logs))
        assert len(held.files()) == 7
        assert not reader.compact()
        assert len(told(logs)) == 1
        held.write(8, noted(1))
        found += reader.read()
        assert reader.compact()
        assert contents(found, 1).read().startswith(b"part 1;part 2;")

    def test_a_thread_may_read_meanwhile(self, held: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that was about to open a file which the checkpoint replaced finds the bytes in the checkpoint."""
        fill(held)
        reader = held.reader(live=True)
        found = reader.read()
        settle_others(reader, found)
        content = contents(found, 1)
        really: Callable[..., int] = os.open

        def late(path: Path, flags: int, mode: int = 0o777) -> int:
            monkeypatch.undo()
            reader.compact()
            return really(path, flags, mode)

        monkeypatch.setattr(os, "open", late)
        assert content.read().startswith(b"part 1;part 2;")
        assert held.files() == ["000000000006.checkpoint", "000000000007.journal"]


class TestSlots:
    def test_only_its_user_may_look_into_it(self, tmp_path: Path) -> None:
        """Directories 0700, files 0600; what is above is made."""
        slot = Slot.create(tmp_path / "a" / "b", INSTANCE)
        assert slot.path == tmp_path / "a" / "b" / INSTANCE
        assert slot.instance == INSTANCE
        assert slot.path.stat().st_mode & 0o777 == 0o700
        assert slot.path.parent.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.stat().st_mode & 0o777 for path in slot.path.iterdir()} == {
            "owner.lock": 0o600,
            "reader.lock": 0o600,
        }
        assert [path.name for path in slot.path.parent.iterdir()] == [INSTANCE]

    def test_it_is_adopted_when_both_its_processes_are_dead(self, tmp_path: Path) -> None:
        """Not before, and by one only."""
        owner = Slot.create(tmp_path, INSTANCE)
        assert Slot.adoptable(tmp_path) == []
        reader = Slot.attach(tmp_path, INSTANCE)
        assert reader is not None
        owner.release()
        assert Slot.adoptable(tmp_path) == []
        reader.release()
        (adopted,) = Slot.adoptable(tmp_path)
        assert adopted.path == owner.path
        assert Slot.adoptable(tmp_path) == []
        adopted.release()
        assert len(Slot.adoptable(tmp_path)) == 1

    def test_an_owner_that_lives_keeps_it(self, tmp_path: Path) -> None:
        """Its recorder may be dead, and will be started again."""
        Slot.create(tmp_path, INSTANCE)
        reader = Slot.attach(tmp_path, INSTANCE)
        assert reader is not None
        reader.release()
        assert Slot.adoptable(tmp_path) == []
        assert Slot.attach(tmp_path, INSTANCE) is not None

    def test_it_has_one_reader(self, tmp_path: Path) -> None:
        """And none before it is there."""
        assert Slot.attach(tmp_path, INSTANCE) is None
        Slot.create(tmp_path, INSTANCE)
        assert Slot.attach(tmp_path, INSTANCE) is not None
        assert Slot.attach(tmp_path, INSTANCE) is None

    def test_removing_it_leaves_nothing(self, held: Spool) -> None:
        """Also under the eyes of an owner that still has it."""
        held.write(1, opened(1))
        reader = Slot.attach(held.root, INSTANCE)
        assert reader is not None
        reader.remove()
        assert list(held.root.iterdir()) == []
        assert Slot.adoptable(held.root) == []

    def test_a_slot_that_is_being_removed_is_not_adopted(self, held: Spool) -> None:
        """Its owner's lock is the first to go: what has none is left alone."""
        held.owner.release()
        (held.path / "owner.lock").unlink()
        assert Slot.adoptable(held.root) == []
        assert held.path.exists()

    def test_what_is_not_ours_is_left_alone(self, tmp_path: Path) -> None:
        """Files, links, directories without locks."""
        (tmp_path / "credential-key").touch()
        (tmp_path / "other").mkdir()
        elsewhere = tmp_path / "elsewhere"
        Slot.create(elsewhere, INSTANCE).release()
        (tmp_path / "link").symlink_to(elsewhere / INSTANCE)
        assert Slot.adoptable(tmp_path) == []
        assert Slot.adoptable(tmp_path / "missing") == []

    def test_a_slot_that_was_begun_only_is_swept_away(self, tmp_path: Path) -> None:
        """When it is clear that nobody is about to finish it."""
        half, fresh = tmp_path / ".a.new", tmp_path / ".b.new"
        half.mkdir()
        fresh.mkdir()
        os.utime(half, (1, 1))
        assert Slot.adoptable(tmp_path) == []
        assert not half.exists()
        assert fresh.exists()

    def test_a_directory_for_everybody_is_told(self, tmp_path: Path) -> None:
        """Others could put theirs in its place; not where only the owner may rename."""
        slot = Slot.create(tmp_path / "spool", INSTANCE)
        assert not slot.is_open_to_others
        slot.path.parent.chmod(0o777)
        assert slot.is_open_to_others
        slot.path.parent.chmod(0o1777)
        assert not slot.is_open_to_others
