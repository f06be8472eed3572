-- The tables of shop.yaml: a self-reference, a composite foreign key to a composite key, one sequence
-- (of customers.id), one enum, one view, and types that the proxy's schema does not use.

CREATE TYPE order_state AS ENUM ('open', 'packed', 'sent');

CREATE TABLE customers (
    id          bigserial PRIMARY KEY,
    name        varchar(200) NOT NULL,
    country     char(2),
    born        date,
    preferences jsonb DEFAULT '{}',
    photo       bytea,
    last_seen   inet,
    joined      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE categories (
    slug   text PRIMARY KEY,
    parent text REFERENCES categories (slug),
    title  text NOT NULL
);

CREATE TABLE products (
    sku      text PRIMARY KEY,
    category text REFERENCES categories (slug) ON DELETE SET NULL,
    title    text NOT NULL,
    price    numeric(12, 2) NOT NULL CHECK (price >= 0),
    weight   real,
    sizes    int4range,
    related  text[],
    lead     interval
);

CREATE TABLE orders (
    region   text,
    number   integer,
    customer bigint NOT NULL REFERENCES customers (id) ON DELETE RESTRICT,
    state    order_state NOT NULL DEFAULT 'open',
    placed   timestamp NOT NULL,
    paid     boolean,
    PRIMARY KEY (region, number)
);

CREATE TABLE order_lines (
    region   text,
    number   integer,
    line     smallint,
    product  text NOT NULL REFERENCES products (sku),
    quantity numeric NOT NULL,
    "Note"   text,
    PRIMARY KEY (region, number, line),
    FOREIGN KEY (region, number) REFERENCES orders (region, number) ON UPDATE CASCADE
);

CREATE TABLE events (
    id          uuid PRIMARY KEY,
    customer_id bigint,
    kind        text NOT NULL,
    details     json,
    score       double precision,
    happened    timestamptz NOT NULL
);

CREATE INDEX events_happened_idx ON events (happened);

CREATE VIEW open_orders AS
SELECT o.region, o.number, o.placed, count(l.line) AS lines
FROM orders o
LEFT JOIN order_lines l USING (region, number)
WHERE o.state = 'open'
GROUP BY o.region, o.number, o.placed;
