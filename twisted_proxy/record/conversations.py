"""
Which exchange a request follows, and how.

A request repeats the messages of the one before it: whose messages are a prefix of its own, it follows. Messages are
compared by running hashes (`identity.chains_of`), so a prefix is one look-up.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs
import msgspec

from .coding import decode
from .exchange import Link, Role, Turn
from .store import RecordStore

CONTINUED = "This session is being continued from a previous conversation that ran out of context"
"""How Claude Code begins the first message after a compaction."""

REMEMBERED = 4096
"""Recent exchanges that are known without asking the store: about 1 KB each."""

_PREFIXES_AT_ONCE = 100
"""As many as `RecordStore.turns_at` answers."""
_OF_ONE_CHAIN = 32
_FOLLOWERS = 64
_ANSWERS_TO_READ = 4
_STEPS_BACK = 16
_SUMMARY_CHARACTERS = 400


@attrs.frozen(kw_only=True)
class Asked:
    """What there is to know of a request."""

    id: str
    session: str | None
    agent: str | None
    messages: Sequence[bytes]
    """Each as the JSON that it is; at least one."""
    chains: Sequence[bytes]
    """For each message the hash of all up to it."""
    behind: str | None = None
    """The id of the answer behind which it goes on, where the messages before its own are not sent."""
    compacted: bool = False
    """A header says that messages before its own were replaced by a summary."""

    @property
    def of(self) -> tuple[str | None, str | None]:
        return self.session, self.agent


@attrs.frozen(kw_only=True)
class Place:
    """Where a request belongs; the fields of `Exchange` of the same names."""

    conversation: str
    parent: str | None
    link: Link | None
    messages: int
    chain: bytes
    known: int
    """How many of its messages its parent has, too, counted from the first."""


class _Block(msgspec.Struct):
    type: str = ""
    text: str = ""
    id: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_Block] = ""


class _Role(msgspec.Struct):
    role: str = ""


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_role = msgspec.json.Decoder(_Role).decode
_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def role_of(message: bytes) -> str:
    """The role of a message; nothing where it cannot be read."""
    try:
        return _decode_role(message).role
    except _UNREADABLE:
        return ""


def _blocks(message: bytes) -> list[_Block]:
    try:
        content = _decode_message(message).content
    except _UNREADABLE:
        return []
    return [_Block(type="text", text=content)] if isinstance(content, str) else content


def gist(message: bytes) -> bytes | None:
    """
    A hash of what an answer says and calls, however a client sends it back: its texts, and the ids of its tool calls.

    ``None`` where it says and calls nothing, or cannot be read.
    """
    blocks = _blocks(message)
    said = "".join([block.text for block in blocks if block.type == "text"]).strip()
    called = [block.id for block in blocks if block.type.endswith("tool_use")]
    if not said and not called:
        return None
    return hashlib.blake2b("\0".join([said, *called]).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _summary(message: bytes) -> str | None:
    """The beginning of the summary that an answer is, where it is one."""
    said = "".join([block.text for block in _blocks(message) if block.type == "text"])
    _, opened, rest = said.partition("<summary>")
    summary = rest.partition("</summary>")[0].strip()
    return summary[:_SUMMARY_CHARACTERS].strip() if opened and summary else None


@attrs.define(eq=False)
class _Known:
    """An exchange that was placed here, or that the store told of."""

    turn: Turn
    gist: bytes | None = None
    gist_is_known: bool = False
    summary: str | None = None
    followers: dict[str, bytes | None] | None = None
    """Chains by id; ``None``: the store must be asked."""


class _Recent:
    """The exchanges that were of interest last, and the ways to find them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._by_id: OrderedDict[str, _Known] = OrderedDict()
        self._by_chain: dict[bytes, list[str]] = {}
        self._by_message: dict[str, str] = {}
        self._by_session: dict[tuple[str | None, str | None], list[str]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, exchange_id: str) -> _Known | None:
        known = self._by_id.get(exchange_id)
        if known is not None:
            self._by_id.move_to_end(exchange_id)
        return known

    def at(self, chain: bytes) -> list[_Known]:
        return [known for each in self._by_chain.get(chain, ()) if (known := self.get(each)) is not None]

    def of_message(self, message_id: str) -> _Known | None:
        found = self._by_message.get(message_id)
        return None if found is None else self.get(found)

    def of_session(self, session: str | None, agent: str | None) -> Iterator[_Known]:
        """The newest first."""
        for each in reversed(self._by_session.get((session, agent), ())):
            yield self._by_id[each]

    def add(self, known: _Known) -> _Known:
        """Remember it; where one of that id is remembered already, that one stays."""
        turn = known.turn
        there = self.get(turn.id)
        if there is not None:
            return there
        self._by_id[turn.id] = known
        if turn.chain is not None:
            ids = self._by_chain.setdefault(turn.chain, [])
            ids.append(turn.id)
            if len(ids) > _OF_ONE_CHAIN:
                # The first is what the others repeat.
                del ids[1]
        self._by_session.setdefault((turn.session, turn.agent), []).append(turn.id)
        if turn.message_id is not None:
            self._by_message[turn.message_id] = turn.id
        while len(self._by_id) > self._size:
            self._forget(self._by_id.popitem(last=False)[1].turn)
        return known

    def named(self, known: _Known, message_id: str) -> None:
        known.turn = attrs.evolve(known.turn, message_id=message_id)
        self._by_message[message_id] = known.turn.id

    def _forget(self, turn: Turn) -> None:
        if turn.chain is not None:
            _remove(self._by_chain, turn.chain, turn.id)
        _remove(self._by_session, (turn.session, turn.agent), turn.id)
        if turn.message_id is not None and self._by_message.get(turn.message_id) == turn.id:
            del self._by_message[turn.message_id]


_Key = TypeVar("_Key")


def _remove(index: dict[_Key, list[str]], key: _Key, exchange_id: str) -> None:
    ids = index.get(key, [])
    if exchange_id in ids:
        ids.remove(exchange_id)
    if not ids:
        index.pop(key, None)


class Conversations:
    """
    Puts conversations together, exchange by exchange, in the order in which they came.

    The usual request, which goes on where a recent one ended, costs no look-up in the store. Of several processes that
    record one conversation, each sees what the others did through the store only: links are as good as that.

    Everything here raises `StoreError` where the store had to be asked and did not answer; nothing is done then.

    :param remembered: how many recent exchanges are known without asking.
    """

    def __init__(self, store: RecordStore, *, remembered: int = REMEMBERED) -> None:
        self._store = store
        self._recent = _Recent(remembered)

    async def place(self, asked: Asked) -> Place:
        """Where a request belongs. Later requests may follow it from now on."""
        if asked.behind is not None:
            return await self._place_in_thread(asked, asked.behind)
        length, found = await self._longest(asked)
        parent = self._best(asked, length, found)
        if parent is None:
            parent = await self._summarized(asked)
            link = None if parent is None else Link.COMPACTS
        elif length == len(asked.chains):
            link = Link.REPEATS
        else:
            link = await self._link(asked, parent)
            if link is Link.FORKS and asked.compacted:
                # Only the middle was replaced: the beginning is there still.
                latest = await self._latest(asked)
                parent, link = (latest, Link.COMPACTS) if latest is not None else (parent, link)
        known = length if link in (Link.CONTINUES, Link.FORKS, Link.REPEATS) else 0
        place = _place(asked, parent, link, known, asked.chains[-1])
        self._remember(asked, place)
        return place

    def answered(self, exchange_id: str, message_id: str | None, message: bytes | None) -> None:
        """
        Note what a placed request was answered.

        :param message: the answer as the API gives it without streaming, JSON; of one that was cut, as far as it came.
        """
        known = self._recent.get(exchange_id)
        if known is None:
            return
        if message_id is not None:
            self._recent.named(known, message_id)
        known.gist_is_known = True
        if message is not None:
            known.gist = gist(message)
            known.summary = _summary(message)

    def _remember(self, asked: Asked, place: Place) -> None:
        turn = Turn(
            id=asked.id,
            conversation=place.conversation,
            session=asked.session,
            agent=asked.agent,
            chain=place.chain,
            messages=place.messages,
            message_id=None,
            parent=place.parent,
        )
        self._recent.add(_Known(turn, followers={}))
        parent = None if place.parent is None else self._recent.get(place.parent)
        if parent is not None and parent.followers is not None and len(parent.followers) < _FOLLOWERS:
            parent.followers[asked.id] = place.chain

    # Prefixes

    async def _longest(self, asked: Asked) -> tuple[int, list[_Known]]:
        """How long the longest known prefix is that counts, and who has it; 0 where there is none."""
        for length in range(len(asked.chains), 0, -1):
            found = await self._that_count(asked, length, self._recent.at(asked.chains[length - 1]))
            if found:
                break
        else:
            length, found = 0, []
        # Between a request and the next there is one answer: where there is no more than that, nobody knows better.
        if found and _answers(asked.messages[length:]) <= 1:
            return length, found
        return await self._longest_stored(asked, length, found)

    async def _longest_stored(self, asked: Asked, length: int, found: list[_Known]) -> tuple[int, list[_Known]]:
        if len(asked.chains) == 1 and asked.session is None:
            return length, found
        # A request ends before an answer, so only prefixes count that do.
        ends = [
            end
            for end in range(len(asked.chains), length, -1)
            if end == len(asked.chains) or role_of(asked.messages[end]) == "assistant"
        ]
        for start in range(0, len(ends), _PREFIXES_AT_ONCE):
            some = {asked.chains[end - 1]: end for end in ends[start : start + _PREFIXES_AT_ONCE]}
            turns = await self._store.turns_at(list(some))
            for end in some.values():
                same = [turn for turn in turns if turn.chain == asked.chains[end - 1]]
                better = await self._that_count(asked, end, [self._met(turn) for turn in same])
                if better:
                    return end, better
        return length, found

    def _met(self, turn: Turn) -> _Known:
        return self._recent.get(turn.id) or _Known(turn)

    async def _that_count(self, asked: Asked, length: int, found: list[_Known]) -> list[_Known]:
        """
        Of those who have a prefix, those whom having it ties to the request.

        One message alone does not: any two conversations may begin with the same. Their session and agent do, or that
        the next message is what the other was answered.
        """
        earlier = [known for known in found if known.turn.id < asked.id]
        if length > 1 or not earlier:
            return earlier
        counting = [known for known in earlier if asked.session is not None and _of(known) == asked.of]
        if counting or len(asked.messages) == 1:
            return counting
        answer = gist(asked.messages[1])
        if answer is None:
            return []
        newest = sorted(earlier, key=lambda known: known.turn.id, reverse=True)
        for known in newest[:_ANSWERS_TO_READ]:
            await self._read_answer(known)
        return [known for known in newest if known.gist == answer]

    async def _read_answer(self, known: _Known) -> None:
        if known.gist_is_known or known.turn.message_id is None:
            return
        for role in (Role.MESSAGE, Role.ANSWER):
            body = await self._store.body(known.turn.id, role)
            if body is not None:
                known.gist = gist(decode(body.data, body.content_encoding).data)
                break
        known.gist_is_known = True

    def _best(self, asked: Asked, length: int, found: list[_Known]) -> _Known | None:
        if not found:
            return None
        if length == len(asked.chains):
            # The first: the others repeat it, too.
            return min(found, key=lambda known: (_of(known) != asked.of, known.turn.id))
        answer = gist(asked.messages[length])

        def fitness(known: _Known) -> tuple[bool, bool, bool, str]:
            turn = known.turn
            return (
                _of(known) == asked.of,
                answer is not None and known.gist == answer,
                turn.message_id is not None,
                turn.id,
            )

        return max(found, key=fitness)

    async def _link(self, asked: Asked, parent: _Known) -> Link:
        if parent.turn.agent != asked.agent:
            # An agent that starts out with the conversation of another does not take it away.
            return Link.FORKS
        followers = await self._followers(parent)
        mine = asked.chains[-1]
        others = [
            chain
            for each, chain in followers.items()
            if each < asked.id and chain not in (None, mine, parent.turn.chain)
        ]
        return Link.FORKS if others else Link.CONTINUES

    async def _followers(self, parent: _Known) -> dict[str, bytes | None]:
        if parent.followers is None:
            turns = await self._store.followers(parent.turn.id)
            parent.followers = {turn.id: turn.chain for turn in turns[:_FOLLOWERS]}
            self._recent.add(parent)
        return parent.followers

    # Threads

    async def _place_in_thread(self, asked: Asked, message_id: str) -> Place:
        known = self._recent.of_message(message_id)
        if known is None:
            turn = await self._store.turn_of_message(message_id)
            known = None if turn is None else self._met(turn)
        # What is not sent counts: the same words behind another answer are another request.
        chain = hashlib.blake2b(
            message_id.encode() + b"\0" + asked.chains[-1], digest_size=len(asked.chains[-1])
        ).digest()
        parent = known if known is not None and known.turn.id < asked.id else None
        place = _place(asked, parent, None if parent is None else Link.THREADS, 0, chain)
        if parent is not None:
            followers = await self._followers(parent)
            repeated = [each for each, its in followers.items() if its == chain and each < asked.id]
            if repeated:
                place = attrs.evolve(place, parent=min(repeated), link=Link.REPEATS, known=len(asked.messages))
        self._remember(asked, place)
        return place

    # Compactions

    async def _summarized(self, asked: Asked) -> _Known | None:
        """The exchange whose conversation the request's first message sums up."""
        if asked.session is None:
            return None
        texts = [block.text for block in _blocks(asked.messages[0]) if block.type == "text"]
        for known in self._recent.of_session(*asked.of):
            if known.summary is not None and known.turn.id < asked.id and any(known.summary in text for text in texts):
                return known
        if asked.compacted or any(text.lstrip().startswith(CONTINUED) for text in texts):
            return await self._latest(asked)
        return None

    async def _latest(self, asked: Asked) -> _Known | None:
        """
        The newest exchange of the session and agent that is not a single question, or else the newest.

        Titles and the like are single questions beside a conversation.
        """
        if asked.session is None:
            return None
        newest, before = None, asked.id
        for known in self._recent.of_session(*asked.of):
            if known.turn.id < before and known.turn.messages != 1:
                return known
        for _ in range(_STEPS_BACK):
            turn = await self._store.latest_turn(asked.session, asked.agent, before)
            if turn is None:
                break
            if turn.messages != 1:
                return self._met(turn)
            newest, before = newest or self._met(turn), turn.id
        return newest


def _answers(messages: Sequence[bytes]) -> int:
    """How many answers there are: a client may send one as several messages."""
    roles = ["", *(role_of(message) for message in messages)]
    return sum(role == "assistant" != before for before, role in itertools.pairwise(roles))


def _of(known: _Known) -> tuple[str | None, str | None]:
    return known.turn.session, known.turn.agent


def _place(asked: Asked, parent: _Known | None, link: Link | None, known: int, chain: bytes) -> Place:
    return Place(
        conversation=asked.id if parent is None else parent.turn.conversation,
        parent=None if parent is None else parent.turn.id,
        link=link,
        messages=len(asked.messages),
        chain=chain,
        known=known,
    )
