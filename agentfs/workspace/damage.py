"""Damage: what is wrong with the bytes of a segment, as whoever checks replicas wants to know it."""

from collections.abc import Sequence

from agentfs.chunks.segment import decode_chunk, parse_segment
from agentfs.model.errors import Corrupt
from agentfs.model.extents import Chunk, digest_of


def damage(body: bytes, name: bytes, used: Sequence[Chunk] = ()) -> tuple[str, list[Chunk]]:
    """What is wrong with a segment, "" if nothing, and the chunks in use that are wrong. Slow: it decodes all of them."""
    wrong = [chunk for chunk in used if not _is_right(body, chunk)]
    if digest_of(body) != name:
        return "its bytes are not those it is named by", wrong
    try:
        listed = set(parse_segment(body))
    except Corrupt as error:
        return str(error), wrong
    if wrong or not listed.issuperset(used):
        return "it does not hold the chunks that State says", wrong
    return "", wrong


def _is_right(body: bytes, chunk: Chunk) -> bool:
    try:
        decode_chunk(memoryview(body)[chunk.start : chunk.start + chunk.stored], chunk)
    except Corrupt:
        return False
    return True
