"""The schema of tree.db, column by column, and the migrations between its versions.

Owned by the database's one writing connection; nobody else creates or alters a table. The version
is SQLite's ``user_version``; a newer one than ``VERSION`` is refused in words. ``MIGRATIONS[n]``
brings a database of version n to n + 1.

Epochs: a row that is changed carries in ``epoch`` the epoch in which it got its present form.
Changing a row of an earlier epoch first copies it to its ``_past`` table with ``until`` = the
current epoch, so the tree at epoch e is: live rows with epoch <= e, and past rows with epoch <= e
< until. An inode that has lost its last name is live until epoch ``gone``: its row keeps the form
that it had. A row that is born and dies in one epoch leaves no trace.
"""

from __future__ import annotations

VERSION = 3

#: A created file changes a page of each of four trees: 318 MiB reach the disk for 30,000 files of
#: 1,000 bytes with 2 KiB pages, 203 MiB with these; queries and commits take the same time.
PAGE_BYTES = 1024

TABLES = (
    # Facts about the whole state directory.
    """create table meta(
        key text primary key,   -- profile, node, sealed_seq, boot, epoch …
        value                   -- integer, text or blob as the key's reader expects
    ) without rowid""",
    # The mount table as it was ever used: numbers stay with their names.
    """create table mount(
        id integer primary key, -- stands in inode.mount
        name text unique,       -- the directory at the root
        kind text,              -- mfs, ipfs, …
        root integer            -- inode number of the mount's root directory
    )""",
    # Live inodes, and dead ones until history and the kernel have forgotten them.
    """create table inode(
        ino integer primary key,-- dense; stable for ever in writable mounts
        mount integer,          -- mount.id
        parent integer,         -- its directory while it has one name, else 0
        epoch integer,          -- epoch in which the row got this form
        gone integer,           -- epoch in which the last name went; null while it has one
        attributes blob,        -- vfs.tree.ATTRIBUTES: mode, uid, gid, nlink, size, times …
        content blob,           -- journal.content: empty, small, large, symlink, CID, remote
        cid blob                -- of a directory: CID and Tsize as of the last MFS root; of a
                                --   remote file: vfs.remotecid, the CID of one version's bytes
    )""",
    "create index inode_gone on inode(gone) where gone is not null",
    # Live names. The id is the readdir offset: names keep it, merges never re-insert.
    """create table dentry(
        parent integer,         -- directory
        id integer,             -- dense, never reused
        name blob,              -- bytes as the kernel gave them
        ino integer,            -- what it names
        epoch integer,          -- epoch in which the name got this form
        primary key(parent, id)
    ) without rowid""",
    "create unique index dentry_name on dentry(parent, name)",
    # All names of inodes that have more than one; inodes with one name have none here.
    """create table link(
        ino integer,            -- the inode
        parent integer,         -- a directory that names it
        name blob,              -- under this name
        primary key(ino, parent, name)
    ) without rowid""",
    """create table xattr(
        ino integer,
        name blob,              -- with its namespace: user.comment
        value blob,
        primary key(ino, name)
    ) without rowid""",
    # What is known of a remote object, apart from what the kernel asks for.
    # It outlives the inode's row until the backend has confirmed the removal.
    """create table remote(
        ino integer primary key,
        mount integer,          -- mount.id; paths are relative to it
        path blob,              -- where the backend holds it *now*; null: nowhere
        version text,           -- of the object at its backend
        checked_ns integer,     -- when the backend last said so
        listing integer,        -- of a directory: 0 unlisted, 1 partial, 2 complete
        cursor text,            -- of a partial listing: where to go on
        listed_ns integer,      -- of a complete listing: when it was; of a partial: its beginning
        synced blob,            -- vfs.remoterows.content_key of the bytes that version has, where
                                --   unifs wrote them; null: they came from the backend
        told blob,              -- attributes that the backend confirmed; null: none
        local integer,          -- 1: the row holds what the backend cannot give again
        attempt text,           -- journal.writeback_order.Attempt on its way, outcome unknown; null
        content blob            -- content column that the attempt carries; null
    )""",
    "create index remote_path on remote(mount, path)",
    "create index remote_attempt on remote(mount) where attempt is not null",
    # Large contents. Immutable once sealed.
    """create table content(
        id integer primary key,
        refs integer,           -- rows of inode, inode_past and remote that name it
        state integer,          -- 1 closed, 2 sealed
        boot blob,              -- boot id under which it was closed
        size integer,           -- bytes
        extents blob,           -- journal.extents: start, length, container
        proof blob,             -- while closed: hash of the bytes not yet durable, or null
        durable_size integer,   -- while closed: the form that the last fsync made durable;
        durable_extents blob,   --   null if there was none
        cid blob,               -- once sealed: Tsize (8 bytes) and CID
        leaves blob             -- once sealed: sha2-256 of each chunk, 32 bytes each
    )""",
    # Which files below data/ a content's extents name; a file that nobody names can go.
    """create table holding(
        content integer,
        container integer,      -- the file's name
        primary key(content, container)
    ) without rowid""",
    "create index holding_container on holding(container)",
    # Bytes that an fsync carried in its transaction instead of syncing the container. After a
    # power cut they are written there before anything reads it; once it is synced they go.
    """create table redo(
        container integer,      -- the file's name
        id integer,             -- dense within the container; later bytes lie over earlier ones
        offset integer,         -- in the file
        bytes blob,
        primary key(container, id)
    ) without rowid""",
    # The ordered record of every change. Only ``state`` is updated; pruned from the old end.
    """create table journal(
        seq integer primary key,-- the record's id and token
        time_ns integer,
        op integer,             -- journal.log.Op
        ino integer,
        parent integer,         -- directory of the name concerned, else 0
        data blob,              -- per op, see journal.log
        state integer           -- null: needs no confirmation of its own; 0 waiting, 1 quarantined
    )""",
    "create index journal_waiting on journal(ino, seq) where state is not null",
    """create table inode_past(
        ino integer, until integer, epoch integer, attributes blob, content blob,
        primary key(ino, until)
    ) without rowid""",
    """create table dentry_past(
        parent integer, until integer, id integer, name blob, ino integer, epoch integer,
        primary key(parent, until, id)
    ) without rowid""",
    "create index inode_past_until on inode_past(until)",
    "create index dentry_past_until on dentry_past(until)",
    # One row for each epoch that has ended: with an MFS root or, where none was built, without.
    """create table epoch(
        epoch integer primary key,
        seq integer,            -- last journal record that it contains
        time_ns integer,
        root blob               -- CID, or null
    )""",
)

#: Version 2: rows of redo are made one after another and removed in runs, for which a tree by row
#: id writes one page; by container and id it took 2.6 for each fsync of an appended log.
REDO_BY_ID = (
    "alter table redo rename to redo_by_container",
    """create table redo(
        id integer primary key, -- dense; later bytes lie over earlier ones
        container integer,      -- the file's name
        offset integer,         -- in the file
        bytes blob
    )""",
    "insert into redo(container,offset,bytes)"
    " select container,offset,bytes from redo_by_container order by container,id",
    "drop table redo_by_container",
)

#: Version 3: what history needs to be looked at, and what a user says of it.
HISTORY = (
    # Epoch in which the attribute got this value; 0: before this column was.
    "alter table xattr add column epoch integer not null default 0",
    """create table xattr_past(
        ino integer, until integer, epoch integer, name blob, value blob,
        primary key(ino, until, name)
    ) without rowid""",
    "create index xattr_past_until on xattr_past(until)",
    # By id: a directory of an epoch is listed by it, as a live one is.
    """create table dentry_past_by_id(
        parent integer, until integer, id integer, name blob, ino integer, epoch integer,
        primary key(parent, id, until)
    ) without rowid""",
    "insert into dentry_past_by_id select * from dentry_past",
    "drop table dentry_past",
    "alter table dentry_past_by_id rename to dentry_past",
    "create index dentry_past_until on dentry_past(until)",
    # Epochs with a name of the user's; they are kept until it is removed.
    """create table checkpoint(
        name text primary key,
        epoch integer,          -- epoch.epoch
        time_ns integer         -- epoch.time_ns, by which fsck finds a lost number again
    ) without rowid""",
    # Epochs that are no longer shown. Their rows go next, then the row here and in epoch; an epoch
    # with the newest root keeps both.
    """create table thinned(
        epoch integer primary key,
        is_swept integer        -- 1: its rows are gone
    )""",
    # Directories at and below which no past is kept, or was not once: what is left is not all.
    """create table untracked(
        ino integer primary key,-- inode.ino
        until integer           -- epoch from which on one is kept again; null while none is
    )""",
)

MIGRATIONS: dict[int, tuple[str, ...]] = {0: TABLES, 1: REDO_BY_ID, 2: HISTORY}
