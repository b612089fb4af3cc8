-- Exchanges, their bodies, and what those share.

CREATE TABLE exchanges (
    -- Sorts by time: the milliseconds of received_at, then bits of the id.
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    -- Grows with each write to any exchange (totals.revision).
    revision INTEGER NOT NULL,
    -- 1 while bodies or text are kept.
    holds INTEGER NOT NULL,
    -- Bytes that it is reckoned to take, bodies and text not counted.
    weight INTEGER NOT NULL,

    instance TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    body_read_us INTEGER,
    connected_us INTEGER,
    headers_us INTEGER,
    first_event_us INTEGER,
    last_byte_us INTEGER,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    query TEXT,
    client TEXT,
    status INTEGER,
    verdict TEXT,
    request_bytes INTEGER NOT NULL,
    response_bytes INTEGER NOT NULL,
    model TEXT,
    routed_model TEXT,
    provider TEXT,
    stream INTEGER,
    demoted INTEGER NOT NULL,
    session TEXT,
    prompt TEXT,
    agent TEXT,
    parent_agent TEXT,
    request_class TEXT,
    agent_type TEXT,
    user_agent TEXT,
    credential TEXT,
    upstream_request_id TEXT,
    rate_limits TEXT,
    request_headers TEXT,
    response_headers TEXT,
    message_id TEXT,
    stop_reason TEXT,
    usage TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cache_read_tokens INTEGER,
    cache_write_5m_tokens INTEGER,
    cache_write_1h_tokens INTEGER,
    cost_nanousd INTEGER,
    cost_is_partial INTEGER NOT NULL,
    error_type TEXT,
    error_message TEXT,
    conversation TEXT,
    parent TEXT,
    link TEXT,
    messages INTEGER,
    chain BLOB,
    lost TEXT
);

-- Every filter in one place, in the order of pages: whatever is asked, it takes one pass over this, not over the rows.
CREATE INDEX exchanges_filters ON exchanges (
    number, received_at, verdict, status, model, routed_model, session, agent, conversation, request_class, path,
    cost_nanousd
);

-- Each of these goes on in the order of numbers, as every index ends with its table's key.
CREATE INDEX exchanges_verdict ON exchanges (verdict);
CREATE INDEX exchanges_status ON exchanges (status);
CREATE INDEX exchanges_model ON exchanges (model);
CREATE INDEX exchanges_routed_model ON exchanges (routed_model) WHERE routed_model IS NOT NULL;
CREATE INDEX exchanges_session ON exchanges (session);
CREATE INDEX exchanges_agent ON exchanges (agent) WHERE agent IS NOT NULL;
CREATE INDEX exchanges_conversation ON exchanges (conversation) WHERE conversation IS NOT NULL;
CREATE INDEX exchanges_request_class ON exchanges (request_class) WHERE request_class IS NOT NULL;
CREATE INDEX exchanges_path ON exchanges (path);
CREATE INDEX exchanges_cost ON exchanges (cost_nanousd) WHERE cost_nanousd IS NOT NULL;
CREATE INDEX exchanges_parent ON exchanges (parent) WHERE parent IS NOT NULL;
CREATE INDEX exchanges_chain ON exchanges (chain) WHERE chain IS NOT NULL;
CREATE INDEX exchanges_message_id ON exchanges (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX exchanges_latest ON exchanges (session, agent) WHERE messages > 0;
CREATE INDEX exchanges_revision ON exchanges (revision);
CREATE INDEX exchanges_holding ON exchanges (number) WHERE holds = 1;

CREATE TABLE bodies (
    exchange INTEGER NOT NULL,
    role TEXT NOT NULL,
    size INTEGER NOT NULL,
    content_type TEXT,
    content_encoding TEXT,
    -- When its bytes were there, compressed.
    marks BLOB,
    -- How its parts and what is between them make it (blobs.encode).
    recipe BLOB NOT NULL,
    PRIMARY KEY (exchange, role)
);

-- Runs of bytes that bodies share, and runs of such runs.
CREATE TABLE parts (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    -- How many times it stands in recipes and in other parts.
    refs INTEGER NOT NULL,
    -- 1: data is a list of other parts (blobs.encode_run); 0: data is bytes, compressed.
    run INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    data BLOB NOT NULL
);

-- What a search found an exchange by, compressed.
CREATE TABLE texts (
    exchange INTEGER PRIMARY KEY,
    -- Bytes that it is reckoned to take, here and in the index.
    weight INTEGER NOT NULL,
    data BLOB NOT NULL
);

-- The words are folded and parted before they come here (words.py): nothing but blanks is between them.
CREATE VIRTUAL TABLE search USING fts5 (words, content = '', columnsize = 0, tokenize = 'ascii');

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    alive_at INTEGER NOT NULL
);

-- One row.
CREATE TABLE totals (
    revision INTEGER NOT NULL,
    -- Bytes of parts, recipes and marks.
    bodies INTEGER NOT NULL,
    -- Bytes that everything else is reckoned to take.
    others INTEGER NOT NULL
);

INSERT INTO totals (revision, bodies, others) VALUES (0, 0, 0);
