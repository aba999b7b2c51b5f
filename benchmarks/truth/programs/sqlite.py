"""A database written, indexed, rolled back, backed up and read by two connections."""

from __future__ import annotations

import sqlite3

with sqlite3.connect("data.db") as database:
    database.execute("create table t (a integer primary key, b text)")
    database.executemany("insert into t (b) values (?)", ((f"row {i}",) for i in range(5_000)))
database.execute("create index by_b on t (b)")
try:
    with database:
        database.execute("delete from t")
        raise KeyError
except KeyError:
    pass
with sqlite3.connect("copy.db") as copy:
    database.backup(copy)
for mode in ("wal", "delete", "truncate", "persist"):
    copy.execute(f"pragma journal_mode={mode}")
    for _ in range(5):
        with copy:
            copy.execute("update t set b = b || 'x' where a % 50 = 0")
copy.execute("vacuum")
assert database.execute("select count(*) from t").fetchone() == (5_000,)
database.close()
copy.close()
