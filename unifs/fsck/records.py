"""Records: the journal, the epochs, and rows of the past."""

from __future__ import annotations

import struct
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from unifs.fsck.look import KEYS, Check, Finding, is_cid, mode_of
from unifs.journal.log import Op, pack_pair, unpack_pair, unpack_rename
from unifs.vfs.epochs import is_checkpoint_name
from unifs.vfs.remoterows import content_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending

OPS = frozenset(each.value for each in Op)
#: Records whose data is a name.
NAMED = frozenset((Op.CREATE.value, Op.UNLINK.value, Op.RMDIR.value, Op.LINK.value))
#: Transactions that are rolled back use numbers too, but never so many without one that is not.
UNUSED_MAX = 1_000_000
#: A checkpoint has the time of its epoch, or one that is so much earlier at most.
CHECKPOINT_NS = 10_000_000
#: Of a row of the past: no epoch, the present one included, can have shown it.
NEVER = (
    "(epoch>=until or epoch<0"
    " or until>(select coalesce((select value from meta where key='epoch'),1)))"
)


def records(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Records that cannot be read, and changes that wait for nobody."""
    query = "select seq,op,ino,parent,data,state from journal where seq>? and seq<=?"
    for seq, op, ino, _parent, data, state in look.all(query, (after, upto)):
        if seq <= 0 or problem_of(op, data):
            sentence = f"record {seq} of the journal {problem_of(op, data) or 'has no number'}"
            yield Finding("RECORD_SHAPE", sentence, seq, partial(_set_record, seq))
        elif state not in (None, 0, 1):
            sentence = f"record {seq} of the journal is in no state"
            yield Finding("RECORD_STATE", sentence, seq, partial(_set_waiting, seq))
        elif state is not None and _is_nobodys(look, ino):
            sentence = f"record {seq} waits for inode {ino}, which nobody knows"
            yield Finding("RECORD_NO_INODE", sentence, seq, partial(_delete, seq))
        elif ino < 0 or (ino == 0 and op != Op.SYNC):
            # A SYNC of nobody's is what the release of a content waits for (``remotedrop``).
            sentence = f"record {seq} is of inode {ino}, which cannot be one"
            yield Finding("RECORD_NO_INODE", sentence, seq, partial(_delete, seq))


def problem_of(op: Any, data: bytes) -> str:
    """Why a record cannot be read; "" where it can."""
    if op not in OPS:
        return "says what nothing does"
    try:
        if op == Op.CONTENT:
            old, new = unpack_pair(data)
            is_sound = len(old) + len(new) + 4 == len(data)
        elif op == Op.RENAME:
            renamed = unpack_rename(data)
            is_sound = bool(renamed.name and renamed.new_name)
        elif op in NAMED:
            is_sound = len(data) < 256
        elif op == Op.SETATTR:
            is_sound = not data or bool(mode_of(data))
        else:
            is_sound = True
    except (ValueError, IndexError, struct.error):
        return "cannot be read"
    return "" if is_sound else "cannot be read"


def _is_nobodys(look: Look, ino: int) -> bool:
    query = (
        "select 1 from inode where ino=?1 union all select 1 from remote where ino=?1"
        " union all select 1 from inode_past where ino=?1"
    )
    return look.one(query, (ino,)) is None


def _set_record(seq: int, mending: Mending) -> None:
    """What waits for a backend still waits, as a change of attributes; others go."""
    query = (
        "select j.state,i.attributes from journal j left join inode i on i.ino=j.ino where j.seq=?"
    )
    state, attributes = mending.database.one(query, (seq,))
    if state is None or attributes is None or seq <= 0:
        _delete(seq, mending)
    else:
        mending.update("journal", "op=7,data=?", "seq=?", attributes, seq)


def _set_waiting(seq: int, mending: Mending) -> None:
    mending.update("journal", "state=0", "seq=?", seq)


def _delete(seq: int, mending: Mending) -> None:
    mending.delete("journal", "seq=?", seq)


def newest(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """The last change of a file's bytes that the journal knows, and what the file's row says."""
    mounts = {number for number, each in look.mounts().items() if each.kind == "mfs"}
    seen: set[int] = set()
    # The row, and nothing where the file has been written to since the check began.
    present = (
        "select content,mount,gone from inode where ino=?1 and not exists"
        " (select 1 from journal where seq>?2 and op=2 and ino=?1)"
    )
    query = (
        "select ino,data from journal where seq>? and seq<=? and op=2 and typeof(ino)='integer'"
        " order by seq desc"
    )
    first = last = look.one("select max(seq) from journal")[0]
    while last is not None:
        look.check_cancelled()
        for ino, data in look.all(query, (last - KEYS, last)):
            if ino in seen or problem_of(Op.CONTENT, data):
                continue
            seen.add(ino)
            row = look.one(present, (ino, first))
            if row is None or row[1] not in mounts or row[2] is not None:
                continue
            if content_key(row[0]) != content_key(unpack_pair(data)[1]):
                sentence = f"the journal's last record of {look.path(ino)} says another content"
                mend = partial(_record_content, ino, unpack_pair(data)[1])
                yield Finding("RECORD_CONTENT", sentence, ino, mend)
        last = look.one("select max(seq) from journal where seq<=?", (last - KEYS,))[0]


def _record_content(ino: int, recorded: bytes, mending: Mending) -> None:
    """The row is what readers see: the journal follows it."""
    query = "select content,parent from inode where ino=?"
    content, parent = mending.database.one(query, (ino,))
    mending.record(Op.CONTENT, ino, parent, pack_pair(recorded, content))


def sequence(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """How far the journal says that things have come."""
    # In this order, because all of them only grow.
    known: dict[str, Any] = dict(look.all("select key,value from meta"))
    last = look.one("select coalesce(max(seq),0) from journal")[0]
    last = max(last, known.get("pruned_seq", 0))
    sealed = known.get("sealed_seq", 0)
    if sealed > last + UNUSED_MAX:
        sentence = f"records up to {sealed} are called sealed, the last one is {last}"
        yield Finding("SEALED_AHEAD", sentence, mend=partial(_set_sealed, last))
    last = max(last, sealed) + UNUSED_MAX
    query = "select epoch,seq,root from epoch where {page} order by epoch"
    for epoch, seq, root in chain.from_iterable(look.pages(query, "epoch", "epoch")):
        if seq > last or seq < 0:
            sentence = f"epoch {epoch} contains records up to {seq}, the last one is {last}"
            yield Finding("EPOCH_AHEAD", sentence, epoch, partial(_forget_root, epoch))
        elif root is not None and not is_cid(root):
            sentence = f"the root of epoch {epoch} is no CID"
            yield Finding("EPOCH_ROOT", sentence, epoch, partial(_forget_root, epoch))


def _set_sealed(last: int, mending: Mending) -> None:
    mending.keep_rows("meta", "key='sealed_seq'", ())
    mending.database.set_meta("sealed_seq", last)


def _forget_root(epoch: int, mending: Mending) -> None:
    """All directories are looked at again by the next root."""
    mending.update("epoch", "seq=0,root=null", "epoch=?", epoch)
    for (root,) in mending.database.all("select root from mount where kind='mfs'"):
        mending.note_directory(root)


def past(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Rows of the past that no epoch can show."""
    tables = (
        ("inode_past", "ino,until"),
        ("dentry_past", "parent,id,until"),
        ("xattr_past", "ino,until,name"),
    )
    for table, key in tables:
        owner = key.partition(",")[0]
        query = f"select distinct {owner} from {table} where {NEVER} and {{page}}"
        for number in dict.fromkeys(
            row[0] for rows in look.pages(query, table, key) for row in rows
        ):
            sentence = f"{table} has a row of {number} that was in force in no epoch"
            yield Finding("PAST_EPOCHS", sentence, number, partial(_forget, table, owner, number))
    query = "select ino,until from inode_past where length(attributes)<>56 and {page}"
    for ino, until in chain.from_iterable(look.pages(query, "inode_past", "ino,until")):
        sentence = f"the attributes of inode {ino} until epoch {until} are none"
        yield Finding("PAST_SHAPE", sentence, ino, partial(_forget_form, ino, until))


def _forget(table: str, owner: str, number: int, mending: Mending) -> None:
    mending.delete(table, f"{owner}=? and {NEVER}", number)


def _forget_form(ino: int, until: int, mending: Mending) -> None:
    mending.delete("inode_past", "ino=? and until=?", ino, until)


def checkpoints(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Checkpoints whose epoch is not kept or that nobody can name; epochs that are not there."""
    query = (
        "select name,typeof(name),epoch,time_ns,exists (select 1 from epoch e where"
        " e.epoch=c.epoch and not exists (select 1 from thinned t where t.epoch=e.epoch))"
        " from checkpoint c"
    )
    for name, kind, epoch, time_ns, is_kept in look.all(query):
        if kind != "text" or not is_checkpoint_name(name):
            sentence = f"a checkpoint is called {name!r}, which cannot be its name"
            yield Finding("CHECKPOINT_NAME", sentence, mend=partial(_name_anew, name, epoch))
        elif not is_kept:
            sentence = f"the checkpoint {name!r} is of epoch {epoch}, which is not kept"
            yield Finding("CHECKPOINT_EPOCH", sentence, mend=partial(_find_epoch, name, time_ns))
    # One of an epoch to come would hide it.
    query = "select epoch from thinned where epoch not in (select epoch from epoch)"
    for (epoch,) in look.all(query):
        sentence = f"epoch {epoch} is called thinned and is none"
        yield Finding("THINNED_STALE", sentence, epoch, partial(_forget_thinned, epoch))


def _name_anew(name: object, epoch: int, mending: Mending) -> None:
    known = {row[0] for row in mending.database.all("select name from checkpoint")}
    new = f"checkpoint-{epoch}"
    while new in known:
        new += "-"
    mending.update("checkpoint", "name=?", "name is ?", new, name)
    mending.kept.append(f"the checkpoint {name!r} is called {new} now")


def _find_epoch(name: str, time_ns: int, mending: Mending) -> None:
    """The epoch that ended for it, by its time; else it shows nothing that was."""
    query = (
        "select epoch from epoch where time_ns between ?1 and ?1+?2 and epoch not in"
        " (select epoch from thinned) order by time_ns limit 1"
    )
    row = mending.database.one(query, (time_ns, CHECKPOINT_NS))
    if row is not None:
        mending.update("checkpoint", "epoch=?", "name=?", row[0], name)
        return
    mending.delete("checkpoint", "name=?", name)
    mending.kept.append(f"what the checkpoint {name!r} showed is not kept: it is gone")


def _forget_thinned(epoch: int, mending: Mending) -> None:
    mending.delete("thinned", "epoch=?", epoch)


CHECKS = (
    Check(records, "journal", "seq"),
    Check(newest, is_exact=True),
    Check(sequence, is_exact=True),
    Check(past, is_exact=True),
    Check(checkpoints),
)
