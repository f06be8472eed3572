"""What is asked of a server's catalog: one query a fact, each a row a thing.

Imports nothing. `schema` is the endpoint's; `oids` are those of its tables.
"""

from __future__ import annotations

# An operator may have closed pg_stat_activity to everybody.
SERVER = """
SELECT current_setting('server_version_num')::int AS version,
       d.datname::text AS database, pg_encoding_to_char(encoding) AS encoding,
       current_user::text AS user,
       pg_is_in_recovery() AS in_recovery,
       n.oid IS NOT NULL AS schema_exists,
       has_database_privilege(d.oid, 'CREATE') AS may_create_schema,
       has_database_privilege(d.oid, 'TEMP') AS may_use_temporary,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use_schema,
       coalesce(has_schema_privilege(n.oid, 'CREATE'), false) AS may_create_in_schema,
       has_table_privilege('pg_catalog.pg_stat_activity', 'SELECT') AS may_count_sessions,
       coalesce((SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user), false) AS unbound
FROM pg_database d LEFT JOIN pg_namespace n ON n.nspname = %(schema)s
WHERE d.datname = current_database()
"""

# Limits of roles and databases do not bind superusers. From 18 on WAL senders do not count for them. Of sessions of
# other roles the server tells no kind.
LIMITS = """
WITH me AS (SELECT oid, rolsuper, rolconnlimit FROM pg_roles WHERE rolname = current_user),
seen AS (
  SELECT usesysid, datid FROM pg_stat_activity
  WHERE usesysid IS NOT NULL AND NOT starts_with(application_name, 'mishika-migrate/')
    AND (backend_type IS NULL OR backend_type = 'client backend'
      OR backend_type = 'walsender' AND current_setting('server_version_num')::int < 180000)
)
SELECT 'role' AS of, me.rolconnlimit AS allowed, (SELECT count(*) FROM seen WHERE usesysid = me.oid)::int AS used
FROM me WHERE NOT me.rolsuper AND me.rolconnlimit >= 0
UNION ALL
SELECT 'database', d.datconnlimit, (SELECT count(*) FROM seen WHERE datid = d.oid)::int
FROM pg_database d, me WHERE d.datname = current_database() AND NOT me.rolsuper AND d.datconnlimit >= 0
UNION ALL
SELECT 'server', current_setting('max_connections')::int, (SELECT count(*) FROM seen)::int
  + CASE WHEN me.rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
      + coalesce(current_setting('reserved_connections', true), '0')::int END
FROM me
"""

TABLES = """
SELECT c.oid::int8 AS oid, c.relname::text AS name, c.relkind = 'p' AS partitioned,
       pg_get_userbyid(c.relowner)::text AS owner,
       row_security_active(c.oid) AS hidden, c.relrowsecurity AND c.relforcerowsecurity AS forced,
       size.bytes, size.heap, size.rows,
       coalesce(size.pieces, '[]') AS pieces,
       array_remove(ARRAY[
         CASE WHEN has_table_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
         CASE WHEN has_table_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
         CASE WHEN has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END,
         CASE WHEN has_table_privilege(c.oid, 'DELETE') THEN 'DELETE' END,
         CASE WHEN has_table_privilege(c.oid, 'TRUNCATE') THEN 'TRUNCATE' END,
         CASE WHEN pg_has_role(c.relowner, 'USAGE') THEN 'OWNER' END,
         CASE WHEN pg_has_role(c.relowner, 'USAGE')
                OR (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database())
              THEN 'MAINTAIN'
              WHEN current_setting('server_version_num')::int >= 170000 THEN
                CASE WHEN has_table_privilege(c.oid, 'MAINTAIN') THEN 'MAINTAIN' END END], NULL) AS privileges
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT sum(pg_table_size(l.oid))::int8 AS bytes,
         sum(pg_relation_size(l.oid))::int8 AS heap,
         CASE WHEN bool_and(l.reltuples > 0 AND l.relpages > 0)
              THEN sum(l.reltuples::float8 / greatest(l.relpages, 1)
                       * (pg_relation_size(l.oid) / current_setting('block_size')::int))
              END::float8 AS rows,
         json_agg(json_build_object(
           'schema', ln.nspname, 'name', l.relname, 'bytes', pg_table_size(l.oid),
           'pages', pg_relation_size(l.oid) / current_setting('block_size')::int,
           'rows', greatest(l.reltuples::float8 / greatest(l.relpages, 1)
                            * (pg_relation_size(l.oid) / current_setting('block_size')::int), 0),
           'readable', has_table_privilege(l.oid, 'SELECT') AND has_schema_privilege(ln.oid, 'USAGE')
                       AND NOT row_security_active(l.oid)) ORDER BY ln.nspname, l.relname) AS pieces
  FROM pg_class l JOIN pg_namespace ln ON ln.oid = l.relnamespace
  WHERE l.oid = c.oid AND c.relkind = 'r'
     OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf)
) size
WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relpersistence <> 't' AND NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY c.relname
"""

# Only asked for names: a URL with the wrong ?schema= should be answered with the right one.
ELSEWHERE = """
SELECT n.nspname::text AS schema, c.relname::text AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname <> %(schema)s AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'mishika_migrate')
  AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY 1, 2
"""

# What is no table, though it may have the name of one. Views are read by themselves.
OTHERS = """
SELECT c.relname::text AS name, CASE c.relkind WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END AS kind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind IN ('m', 'f') AND NOT c.relispartition AND NOT EXISTS (
  SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1
"""

# Arrays and rows of types with their own OID carry that OID inside their binary form, and the
# target's differs ("binary data has array element type … instead of expected"). The binary form of
# regclass, regrole … is the bare OID, which is another object there or none; their text is a name.
COLUMNS = """
SELECT a.attrelid::int8 AS oid, a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type,
       NOT a.attnotnull AS nullable, pg_get_expr(d.adbin, d.adrelid) AS "default",
       a.attgenerated <> '' AS generated, a.attgenerated = 'v' AS virtual, a.attidentity <> '' AS identity,
       coalesce((SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
                 FROM pg_enum e WHERE e.enumtypid IN (a.atttypid, t.typelem)), '{}') AS labels,
       t.typsend <> 0 AND t.typreceive <> 0 AND t.typtype <> 'c'
         AND t.typelem < 16384 AND t.typbasetype < 16384 AND (t.oid < 16384 OR t.typtype NOT IN ('r', 'm'))
         AND NOT EXISTS (SELECT FROM pg_type r WHERE r.oid IN (t.oid, t.typbasetype)
                         AND r.typnamespace = 'pg_catalog'::regnamespace AND r.typname ~ '^_?reg') AS "binary"
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY (%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

FOREIGN_KEYS = """
SELECT k.conrelid::int8 AS oid, k.conname::text AS name, k.condeferrable AS deferrable,
       CASE WHEN rn.nspname = %(schema)s THEN r.relname::text
            ELSE rn.nspname || '.' || r.relname END AS references,
       (SELECT array_agg(a.attname::text ORDER BY u.n) FROM unnest(k.conkey) WITH ORDINALITY u (num, n)
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS columns,
       (SELECT array_agg(a.attname::text ORDER BY u.n) FROM unnest(k.confkey) WITH ORDINALITY u (num, n)
        JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num) AS referenced
FROM pg_constraint k JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY (%(oids)s)
ORDER BY k.conrelid, k.conname
"""

INDEXES = """
SELECT i.indrelid::int8 AS oid, c.relname::text AS name, pg_get_indexdef(i.indexrelid) AS definition,
       i.indisunique AS "unique", i.indisprimary AS "primary", pg_get_constraintdef(k.oid) AS "constraint",
       i.indisready AND (c.reltablespace = 0 OR has_tablespace_privilege(c.reltablespace, 'CREATE'))
         AND (k.oid IS NULL OR k.contype IN ('p', 'u') AND m.amname = 'btree')
         AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f' AND f.conindid = i.indexrelid)
         AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid)
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_constraint'::regclass
                         AND d.refobjid = k.oid AND d.deptype = 'n') AS droppable,
       (SELECT array_agg(coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, n, true)) ORDER BY n)
        FROM generate_series(1, i.indnkeyatts) n
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = nullif(i.indkey[n - 1], 0)) AS columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
  AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = ANY (%(oids)s) AND i.indisvalid
ORDER BY i.indrelid, c.relname
"""

# Composite types and domains that the tables' columns are of, directly or by way of others.
TYPES = """
WITH RECURSIVE used (oid) AS (
  SELECT coalesce(nullif(t.typelem, 0), t.oid)
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  WHERE a.attrelid = ANY (%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
  UNION
  SELECT coalesce(nullif(p.typelem, 0), p.oid)
  FROM used u JOIN pg_type t ON t.oid = u.oid AND t.oid >= 16384
  LEFT JOIN pg_attribute a ON a.attrelid = nullif(t.typrelid, 0) AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type p ON p.oid = coalesce(a.atttypid, nullif(t.typbasetype, 0))
)
SELECT format_type(t.oid, NULL) AS name,
       CASE t.typtype WHEN 'd' THEN json_build_array(json_build_array('', format_type(t.typbasetype, t.typtypmod)))
         ELSE (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)
               FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) END AS parts,
       ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
             WHERE k.contypid = t.oid AND k.contype = 'c' ORDER BY 1)
         || CASE WHEN t.typnotnull THEN '{NOT NULL}' ELSE '{}' END::text[] AS checks
FROM used JOIN pg_type t USING (oid) WHERE t.oid >= 16384 AND t.typtype IN ('c', 'd')
ORDER BY 1
"""

# A table and its partitions at every level; pg_partition_tree is empty for any other table.
TREE = """
(SELECT r.oid AS root, coalesce(p.relid::oid, r.oid) AS relation
 FROM unnest(%(oids)s::oid[]) r (oid) LEFT JOIN LATERAL pg_partition_tree(r.oid) p ON true) tree
JOIN pg_class c ON c.oid = tree.relation JOIN pg_namespace n ON n.oid = c.relnamespace
"""

# tgtype: 1 row, 4 insert. tgenabled: O fires for ordinary sessions, A always. Of a partition only row
# triggers fire for rows that come by way of its root; copies of the root's own (tgparentid, PostgreSQL
# 13 and later) go on and off with it. The fence of a cutover changes no row.
TRIGGERS = f"""
SELECT tree.root::int8 AS oid, t.tgname::text AS name, n.nspname::text AS schema, c.relname::text AS "table",
       t.tgenabled = 'A' AS always, t.tgtype & 4 = 4 AS on_insert
FROM {TREE} JOIN pg_trigger t ON t.tgrelid = tree.relation
WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 28 > 0 AND t.tgname <> 'mishika_migrate_fence'
  AND (tree.relation = tree.root OR t.tgtype & 1 = 1)
  AND NOT EXISTS (SELECT FROM pg_trigger up
                  WHERE up.oid = (to_jsonb(t) ->> 'tgparentid')::oid AND up.tgenabled IN ('O', 'A'))
ORDER BY tree.root, n.nspname, c.relname, t.tgname
"""

CONSTRAINTS = f"""
SELECT tree.root::int8 AS oid, k.conname::text AS name, n.nspname::text AS schema, c.relname::text AS "table",
       pg_get_constraintdef(k.oid) AS definition
FROM {TREE} JOIN pg_constraint k ON k.conrelid = tree.relation
WHERE k.contype IN ('c', 'x') AND (tree.relation = tree.root OR k.coninhcount = 0)
ORDER BY tree.root, n.nspname, c.relname, k.conname
"""

# Of a partitioned table: what its partitions take, and which of its levels have no DEFAULT partition.
PARTITIONS = f"""
SELECT tree.root::int8 AS oid, n.nspname::text AS schema, c.relname::text AS "table",
       concat_ws(' ', pg_get_expr(c.relpartbound, c.oid), pg_get_partkeydef(c.oid)) AS bound,
       coalesce(p.partstrat <> 'h' AND p.partdefid = 0, false) AS gap
FROM {TREE} LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
WHERE c.relispartition OR c.relkind = 'p'
ORDER BY 1, 4, 2, 3
"""

# Which extensions the columns, defaults and indexes of a table need.
NEEDED_EXTENSIONS = """
SELECT DISTINCT x.oid::int8 AS oid, e.extname::text AS name
FROM (SELECT oid, 'pg_class'::regclass::oid AS class, oid AS object FROM pg_class WHERE oid = ANY (%(oids)s)
      UNION ALL SELECT indrelid, 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid = ANY (%(oids)s)
      UNION ALL SELECT adrelid, 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid = ANY (%(oids)s)
      UNION ALL SELECT conrelid, 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conrelid = ANY (%(oids)s)) x
JOIN pg_depend d ON d.classid = x.class AND d.objid = x.object
LEFT JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid
JOIN pg_depend m ON m.classid = d.refclassid AND m.objid = coalesce(nullif(t.typelem, 0), d.refobjid)
  AND m.refclassid = 'pg_extension'::regclass AND m.deptype = 'e'
JOIN pg_extension e ON e.oid = m.refobjid
ORDER BY 1, 2
"""

EXTENSIONS = """
SELECT e.extname::text AS name, n.nspname::text AS schema
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1
"""

# The subselect keeps the privilege functions, which fail on anything else, away from other relations.
# A sequence belongs to the column that owns it, else to the first whose default draws from it.
SEQUENCES = """
SELECT s.name, o."table", o."column", has_sequence_privilege(s.oid, 'UPDATE') AS writable,
       has_sequence_privilege(s.oid, 'SELECT') AS readable
FROM (SELECT c.oid, c.relnamespace AS schema, c.relname::text AS name
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'S' AND n.nspname = %(schema)s OFFSET 0) s
LEFT JOIN LATERAL (
  SELECT t.relname::text AS "table", a.attname::text AS "column"
  FROM (SELECT d.refobjid AS oid, d.refobjsubid AS number, 0 AS rank FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass
          AND d.deptype IN ('a', 'i')
        UNION ALL
        SELECT f.adrelid, f.adnum, 1 FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid
        WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid) u
  JOIN pg_class t ON t.oid = u.oid AND t.relnamespace = s.schema
  JOIN pg_attribute a ON a.attrelid = u.oid AND a.attnum = u.number
  ORDER BY u.rank, t.relname, a.attnum LIMIT 1
) o ON true
ORDER BY s.name
"""

# Views of an extension (pg_stat_statements) come with the extension. 16384 is the first OID that is not
# the server's own (FirstNormalObjectId).
VIEWS = """
SELECT c.relname::text AS name, pg_get_viewdef(c.oid) AS definition,
       coalesce(array_agg(DISTINCT r.relname::text) FILTER (WHERE r.relnamespace = c.relnamespace), '{}') AS reads,
       coalesce(array_agg(DISTINCT ARRAY[r.relname::text, a.attname::text])
                FILTER (WHERE r.relnamespace = c.relnamespace AND a.attnum > 0), '{}') AS columns,
       coalesce(array_agg(DISTINCT CASE WHEN p.oid IS NOT NULL THEN 'function ' || p.oid::regprocedure
                                        ELSE o.nspname || '.' || r.relname END)
                FILTER (WHERE p.oid IS NOT NULL OR r.relnamespace <> c.relnamespace), '{}') AS "foreign"
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_rewrite w ON w.ev_class = c.oid
LEFT JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
  AND d.refobjid <> c.oid AND d.refobjid >= 16384
LEFT JOIN pg_class r ON d.refclassid = 'pg_class'::regclass AND r.oid = d.refobjid
LEFT JOIN pg_namespace o ON o.oid = r.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = d.refobjsubid
LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
WHERE c.relkind = 'v' AND n.nspname = %(schema)s AND NOT EXISTS (
  SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
GROUP BY c.oid, c.relname ORDER BY c.relname
"""
