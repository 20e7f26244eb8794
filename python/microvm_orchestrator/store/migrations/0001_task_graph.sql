-- The task graph, its journal and the records beside it.
-- References are checked by `doctor`, not at run time: verbs delete what belongs together themselves.

CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- Interned requirements: what a claimant must have, and who may see the task. A claim picks the few
-- classes that fit and then takes the first of each, so it never steps over a task that cannot fit.
CREATE TABLE class (
  id        INTEGER PRIMARY KEY,
  signature TEXT NOT NULL UNIQUE
);

-- Narrow and often written; what is long and seldom written is in task_body.
CREATE TABLE task (
  seq         INTEGER PRIMARY KEY,
  id          TEXT NOT NULL UNIQUE,
  grp         TEXT NOT NULL,
  key         TEXT NOT NULL,
  class_id    INTEGER NOT NULL REFERENCES class (id),
  priority    INTEGER NOT NULL,
  state       TEXT NOT NULL
              CHECK (state IN ('blocked', 'ready', 'running', 'done', 'failed', 'cancelled')),
  reason      TEXT,
  gates_left  INTEGER NOT NULL CHECK (gates_left >= 0),
  not_before  REAL,
  attempt     INTEGER NOT NULL,
  failures    INTEGER NOT NULL,
  expiries    INTEGER NOT NULL,
  worker      TEXT,
  holder      TEXT,
  lease_until REAL,
  deadline    REAL,
  expires_at  REAL,
  lease_s     REAL NOT NULL,
  timeout_s   REAL,
  on_unmet    TEXT NOT NULL,
  policy      TEXT NOT NULL,
  created_at  REAL NOT NULL,
  ready_at    REAL,
  started_at  REAL,
  finished_at REAL,
  parent      INTEGER,
  version     INTEGER NOT NULL,
  -- A lease is held by somebody, and only while the task runs.
  CHECK ((state = 'running') = (expires_at IS NOT NULL)),
  CHECK (state <> 'running' OR worker IS NOT NULL)
);
CREATE UNIQUE INDEX task_key ON task (grp, key);
CREATE INDEX task_ready ON task (class_id, priority DESC, seq) WHERE state = 'ready';
CREATE INDEX task_ready_in_group ON task (grp, class_id, priority DESC, seq) WHERE state = 'ready';
CREATE INDEX task_running ON task (expires_at) WHERE state = 'running';
CREATE INDEX task_blocked ON task (grp, seq) WHERE state = 'blocked';
CREATE INDEX task_due ON task (not_before) WHERE state = 'blocked' AND not_before IS NOT NULL;
CREATE INDEX task_finished ON task (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX task_parent ON task (parent) WHERE parent IS NOT NULL;

CREATE TABLE task_body (
  seq      INTEGER PRIMARY KEY REFERENCES task (seq),
  spec     TEXT NOT NULL,
  result   TEXT,
  error    TEXT,
  progress TEXT
);

CREATE TABLE label (
  key   TEXT NOT NULL,
  value TEXT NOT NULL,
  task  INTEGER NOT NULL REFERENCES task (seq),
  PRIMARY KEY (key, value, task)
) WITHOUT ROWID;
CREATE INDEX label_of_task ON label (task);

-- A gate opens when `need` of its `total` edges are met; a task is ready when all its gates are open.
CREATE TABLE gate (
  task   INTEGER NOT NULL REFERENCES task (seq),
  number INTEGER NOT NULL,
  need   INTEGER NOT NULL,
  total  INTEGER NOT NULL,
  met    INTEGER NOT NULL,
  missed INTEGER NOT NULL,
  PRIMARY KEY (task, number),
  CHECK (met + missed <= total)
) WITHOUT ROWID;

CREATE TABLE edge (
  upstream  INTEGER NOT NULL REFERENCES task (seq),
  dependent INTEGER NOT NULL REFERENCES task (seq),
  gate      INTEGER NOT NULL,
  condition TEXT NOT NULL,
  state     TEXT NOT NULL CHECK (state IN ('open', 'met', 'missed')),
  -- Asked for by the dependent itself, added because a task it waits for has a child, or put before
  -- it by another task.
  origin    TEXT NOT NULL CHECK (origin IN ('asked', 'child', 'before')),
  PRIMARY KEY (upstream, dependent, gate)
) WITHOUT ROWID;
CREATE INDEX edge_of_dependent ON edge (dependent);

CREATE TABLE run (
  task        INTEGER NOT NULL REFERENCES task (seq),
  attempt     INTEGER NOT NULL,
  worker      TEXT NOT NULL,
  holder      TEXT NOT NULL,
  state       TEXT NOT NULL,
  -- From when the task was ready to when it was claimed.
  waited_s    REAL NOT NULL,
  started_at  REAL NOT NULL,
  finished_at REAL,
  progress    TEXT,
  result      TEXT,
  error       TEXT,
  unlocked    TEXT,
  PRIMARY KEY (task, attempt)
) WITHOUT ROWID;
CREATE INDEX run_of_worker ON run (worker, started_at);
CREATE INDEX run_finished ON run (finished_at) WHERE finished_at IS NOT NULL;

-- The journal. Rows are numbered by their place, without gaps: the next is always the greatest plus one.
CREATE TABLE event (
  seq      INTEGER PRIMARY KEY,
  at       REAL NOT NULL,
  kind     TEXT NOT NULL,
  subject  TEXT NOT NULL,
  grp      TEXT,
  class_id INTEGER,
  actor    TEXT NOT NULL,
  body     TEXT NOT NULL
);
CREATE INDEX event_of_subject ON event (subject, seq);

CREATE TABLE audit (
  seq     INTEGER PRIMARY KEY,
  at      REAL NOT NULL,
  actor   TEXT NOT NULL,
  role    TEXT NOT NULL,
  via     TEXT NOT NULL,
  action  TEXT NOT NULL,
  target  TEXT NOT NULL,
  outcome TEXT NOT NULL
);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

-- The answer to a request that carried an idempotency key, for when it comes again.
CREATE TABLE answered (
  principal TEXT NOT NULL,
  key       TEXT NOT NULL,
  digest    TEXT NOT NULL,
  answer    TEXT NOT NULL,
  at        REAL NOT NULL,
  PRIMARY KEY (principal, key)
) WITHOUT ROWID;
CREATE INDEX answered_at ON answered (at);

CREATE TABLE record (
  kind       TEXT NOT NULL,
  id         TEXT NOT NULL,
  version    INTEGER NOT NULL,
  body       TEXT NOT NULL,
  created_at REAL NOT NULL,
  updated_at REAL NOT NULL,
  PRIMARY KEY (kind, id)
) WITHOUT ROWID;

CREATE TABLE worker (
  name          TEXT PRIMARY KEY,
  principal     TEXT NOT NULL,
  capabilities  TEXT NOT NULL,
  roles         TEXT NOT NULL,
  labels        TEXT NOT NULL,
  draining      INTEGER NOT NULL,
  registered_at REAL NOT NULL,
  seen_at       REAL NOT NULL,
  seen_until    REAL NOT NULL,
  lost          INTEGER NOT NULL
) WITHOUT ROWID;

-- Hosts of a fleet. A single host is a fleet of one.
CREATE TABLE host (
  id         TEXT PRIMARY KEY,
  epoch      INTEGER NOT NULL,
  address    TEXT NOT NULL,
  capacity   TEXT NOT NULL,
  free       TEXT NOT NULL,
  draining   INTEGER NOT NULL,
  seen_until REAL NOT NULL
) WITHOUT ROWID;

-- What is set aside on a host, on top of what it says is free. Once its member is owned by the host
-- (`until` is null) it stands until the host's next word, which counts the member itself.
CREATE TABLE reservation (
  gang   TEXT NOT NULL,
  member TEXT NOT NULL,
  host   TEXT NOT NULL,
  needs  TEXT NOT NULL,
  until  REAL,
  PRIMARY KEY (gang, member)
) WITHOUT ROWID;
CREATE INDEX reservation_on_host ON reservation (host);

CREATE TABLE owner (
  kind  TEXT NOT NULL,
  id    TEXT NOT NULL,
  host  TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  PRIMARY KEY (kind, id)
) WITHOUT ROWID;

-- A side effect outside the store that must happen once: written before, and again after.
CREATE TABLE effect (
  key    TEXT PRIMARY KEY,
  task   INTEGER NOT NULL,
  token  INTEGER NOT NULL,
  intent TEXT NOT NULL,
  result TEXT
) WITHOUT ROWID;

-- A number is never given twice, so that `after` means the same for ever; an acknowledged command
-- stays for a while, so that it is known when it is sent again.
CREATE TABLE command (
  seq      INTEGER PRIMARY KEY AUTOINCREMENT,
  host     TEXT NOT NULL,
  id       TEXT NOT NULL UNIQUE,
  body     TEXT NOT NULL,
  heard_at REAL
);
CREATE INDEX command_waiting ON command (host, seq) WHERE heard_at IS NULL;
CREATE INDEX command_heard ON command (heard_at) WHERE heard_at IS NOT NULL;

CREATE TABLE blob_at (
  digest TEXT NOT NULL,
  host   TEXT NOT NULL,
  PRIMARY KEY (digest, host)
) WITHOUT ROWID;
