//! Pools, transactions and the COMPLETE list of what differs between the two databases.
//!
//! Every other module writes one SQL text with `$1` placeholders and schema-qualified tables
//! (`journal.event`), and gets the same rows from both. What differs:
//!
//! | difference | PostgreSQL | SQLite |
//! |---|---|---|
//! | places ([`Area`]) | schemas of one database | files, one writer connection each; the prefix is cut |
//! | bulk input ([`Rows`], `{rows}`) | one array per column, `UNNEST` | `VALUES`; one JSON text if it is large |
//! | one look for each row (`{each: table t: …}`) | `LATERAL`, so that the rows always lead | a join, whose order SQLite keeps |
//! | delete by keys (`{keyed: …}`) | `USING`, so that it is planned as a join by key | row values in a subquery |
//! | row lock (`{for_update}`) | `FOR UPDATE` | nothing: `BEGIN IMMEDIATE` already excludes writers |
//! | lease (`{skip_locked}`) | `FOR UPDATE SKIP LOCKED` | nothing, likewise |
//! | read snapshot | `REPEATABLE READ READ ONLY` | a deferred transaction |
//! | lazy commit of read models | `synchronous_commit = off` | `synchronous = NORMAL` of that file |
//! | wake-ups | `NOTIFY`/`LISTEN`, and polls | the process's own channels, and polls |
//! | plan of what writes | by key: no scans of whole tables, no hash joins | as it is written |
//! | text order | `COLLATE "C"` in the migrations | `BINARY`, the default |

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{
    Arguments, Either, PgPool, Postgres, Row as _, Sqlite, SqliteConnection, SqlitePool, Transaction,
};

use crate::error::{Result, StoreError};

/// The four places of data (D15). A checkpoint lies with what it guards, so that nothing needs
/// atomicity across two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Events, state rows, look-ups, links: the truth.
    Journal,
    /// Keys of tenants and persons.
    Keys,
    /// Read models.
    Model,
    /// Delivery.
    Lanes,
}

const AREAS: [Area; 4] = [Area::Journal, Area::Keys, Area::Model, Area::Lanes];

impl Area {
    /// Its name: the PostgreSQL schema, the SQLite file without `.db`.
    pub fn name(self) -> &'static str {
        match self {
            Area::Journal => "journal",
            Area::Keys => "keys",
            Area::Model => "model",
            Area::Lanes => "lanes",
        }
    }
}

/// Which database, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// A folder with four SQLite files.
    Sqlite {
        /// The folder; made if it is missing.
        dir: PathBuf,
    },
    /// A PostgreSQL database, by URL.
    Postgres {
        /// `postgres://user:password@host/database`.
        url: String,
        /// Most connections of this process.
        connections_max: u32,
    },
}

/// A scalar argument. The type stands in the variant, as PostgreSQL wants it for nulls, too.
#[derive(Clone, Debug)]
pub enum Arg {
    /// `BIGINT`.
    Int(Option<i64>),
    /// `TEXT`.
    Text(Option<String>),
    /// `BYTEA` or `BLOB`.
    Bytes(Option<Vec<u8>>),
}

macro_rules! arg_from {
    ($($from:ty => |$v:ident| $to:expr;)*) => {$(
        impl From<$from> for Arg {
            fn from($v: $from) -> Arg { $to }
        }
    )*};
}
arg_from! {
    i64 => |v| Arg::Int(Some(v));
    Option<i64> => |v| Arg::Int(v);
    i32 => |v| Arg::Int(Some(v.into()));
    u32 => |v| Arg::Int(Some(v.into()));
    usize => |v| Arg::Int(Some(i64::try_from(v).unwrap_or(i64::MAX)));
    bool => |v| Arg::Int(Some(v.into()));
    &str => |v| Arg::Text(Some(v.to_owned()));
    String => |v| Arg::Text(Some(v));
    &String => |v| Arg::Text(Some(v.clone()));
    Option<String> => |v| Arg::Text(v);
    Option<&str> => |v| Arg::Text(v.map(str::to_owned));
    Vec<u8> => |v| Arg::Bytes(Some(v));
    &[u8] => |v| Arg::Bytes(Some(v.to_vec()));
    Option<Vec<u8>> => |v| Arg::Bytes(v);
    uuid::Uuid => |v| Arg::Text(Some(v.hyphenated().to_string()));
    &annals_domain::ids::TenantId => |v| Arg::Text(Some(v.as_str().to_owned()));
    &annals_domain::ids::ResourceId => |v| Arg::Text(Some(v.as_str().to_owned()));
    &annals_domain::ids::AppId => |v| Arg::Text(Some(v.as_str().to_owned()));
    annals_domain::clock::Timestamp => |v| Arg::Int(Some(v.0));
}

/// Type of a column of [`Rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Col {
    /// `BIGINT`.
    Int,
    /// `TEXT`.
    Text,
    /// `BYTEA` or `BLOB`.
    Bytes,
}

/// A table as an argument: `{rows}` in the SQL becomes a relation `r` with these columns. At most one a
/// statement, and its columns may be null.
#[derive(Clone, Debug)]
pub struct Rows {
    columns: &'static [(&'static str, Col)],
    rows: Vec<Vec<Arg>>,
}

impl Rows {
    /// An empty table with the given columns.
    pub fn new(columns: &'static [(&'static str, Col)]) -> Rows {
        Rows { columns, rows: Vec::new() }
    }

    /// Adds a row; its length must be that of the columns.
    pub fn push(&mut self, row: Vec<Arg>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    fn relation_postgres(&self, first: usize) -> String {
        let mut sql = String::from("UNNEST(");
        for (i, (_, kind)) in self.columns.iter().enumerate() {
            let kind = match kind {
                Col::Int => "bigint",
                Col::Text => "text",
                Col::Bytes => "bytea",
            };
            let comma = if i == 0 { "" } else { ", " };
            sql.push_str(&format!("{comma}${}::{kind}[]", first + i));
        }
        sql.push_str(") AS r(");
        for (i, (name, _)) in self.columns.iter().enumerate() {
            sql.push_str(if i == 0 { "" } else { ", " });
            sql.push_str(name);
        }
        sql.push(')');
        sql
    }

    /// How many rows SQLite gets places for: a power of two, so that few texts are enough and the database
    /// knows them all. None: the table is too large to be bound cell by cell.
    fn places_sqlite(&self) -> Option<usize> {
        let places = self.rows.len().next_power_of_two().max(SQLITE_ROWS_MIN);
        Some(places).filter(|places| places * self.columns.len() <= SQLITE_CELLS_MAX)
    }

    /// Adds places for so many rows, of which the first `${first}` are filled.
    fn add_relation_sqlite(&self, first: usize, places: usize, sql: &mut String) {
        let width = self.columns.len();
        sql.reserve(places * (2 * width + 2) + 40 * width + 64);
        sql.push_str("(SELECT ");
        for (i, (name, _)) in self.columns.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            sql.push_str(&format!("{comma}column{} AS {name}", i + 1));
        }
        sql.push_str(" FROM (VALUES ");
        let row = format!("({})", vec!["?"; width].join(","));
        for n in 0..places {
            sql.push_str(if n == 0 { "" } else { "," });
            sql.push_str(&row);
        }
        sql.push_str(&format!(") LIMIT ${first}) AS r"));
    }

    /// The same from one JSON text, for tables that are too large to be bound cell by cell.
    fn json_relation_sqlite(&self, first: usize) -> String {
        let mut sql = String::from("(SELECT ");
        for (i, (name, kind)) in self.columns.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let get = format!("json_extract(value, '$[{i}]')");
            match kind {
                Col::Bytes => sql.push_str(&format!("{comma}unhex({get}) AS {name}")),
                Col::Int | Col::Text => sql.push_str(&format!("{comma}{get} AS {name}")),
            }
        }
        sql.push_str(&format!(" FROM json_each(${first})) AS r"));
        sql
    }

    fn bind_postgres(self, out: &mut PgArguments) -> Result<()> {
        let mut ints: Vec<Vec<Option<i64>>> = Vec::new();
        let mut texts: Vec<Vec<Option<String>>> = Vec::new();
        let mut bytes: Vec<Vec<Option<Vec<u8>>>> = Vec::new();
        for (_, kind) in self.columns {
            match kind {
                Col::Int => ints.push(Vec::with_capacity(self.rows.len())),
                Col::Text => texts.push(Vec::with_capacity(self.rows.len())),
                Col::Bytes => bytes.push(Vec::with_capacity(self.rows.len())),
            }
        }
        for row in self.rows {
            let (mut i, mut t, mut b) = (0, 0, 0);
            for (arg, (_, kind)) in row.into_iter().zip(self.columns) {
                match kind {
                    Col::Int => {
                        ints[i].push(if let Arg::Int(v) = arg { v } else { None });
                        i += 1;
                    }
                    Col::Text => {
                        texts[t].push(if let Arg::Text(v) = arg { v } else { None });
                        t += 1;
                    }
                    Col::Bytes => {
                        bytes[b].push(if let Arg::Bytes(v) = arg { v } else { None });
                        b += 1;
                    }
                }
            }
        }
        let (mut ints, mut texts, mut bytes) = (ints.into_iter(), texts.into_iter(), bytes.into_iter());
        for (_, kind) in self.columns {
            match kind {
                Col::Int => out.add(ints.next().unwrap_or_default()),
                Col::Text => out.add(texts.next().unwrap_or_default()),
                Col::Bytes => out.add(bytes.next().unwrap_or_default()),
            }
            .map_err(StoreError::bind)?;
        }
        Ok(())
    }

    fn to_json(&self) -> String {
        let mut json = String::with_capacity(64 * self.rows.len() * self.columns.len());
        json.push('[');
        for (n, row) in self.rows.iter().enumerate() {
            json.push_str(if n == 0 { "[" } else { ",[" });
            for (i, arg) in row.iter().enumerate() {
                if i > 0 {
                    json.push(',');
                }
                match arg {
                    Arg::Int(Some(v)) => json.push_str(&v.to_string()),
                    Arg::Text(Some(v)) => json.push_str(&serde_json::Value::from(v.as_str()).to_string()),
                    Arg::Bytes(Some(v)) => {
                        json.push('"');
                        json.push_str(&hex::encode(v));
                        json.push('"');
                    }
                    Arg::Int(None) | Arg::Text(None) | Arg::Bytes(None) => json.push_str("null"),
                }
            }
            json.push(']');
        }
        json.push(']');
        json
    }
}

/// Fewest places of a bound table: fewer texts to know.
const SQLITE_ROWS_MIN: usize = 4;
/// Most cells bound one by one; SQLite takes 32,766 arguments a statement.
const SQLITE_CELLS_MAX: usize = 16_384;

/// One statement with its arguments.
#[derive(Clone, Debug)]
pub struct Sql {
    text: String,
    args: Vec<Arg>,
    rows: Option<Rows>,
}

/// Starts a statement. `text` is ours; values go in with [`Sql::bind`], never into the text.
pub fn sql(text: impl Into<String>) -> Sql {
    Sql { text: text.into(), args: Vec::new(), rows: None }
}

impl Sql {
    /// Binds the next `$n`.
    pub fn bind(mut self, arg: impl Into<Arg>) -> Sql {
        self.args.push(arg.into());
        self
    }

    /// The same with a word in front, such as `EXPLAIN`.
    pub fn prefixed(mut self, prefix: &str) -> Sql {
        self.text.insert_str(0, prefix);
        self
    }

    /// Binds a table to `{rows}`.
    pub fn rows(mut self, rows: Rows) -> Sql {
        self.rows = Some(rows);
        self
    }

    /// The text and the arguments as one text, which no other statement has; none if it is longer than that or
    /// has a table.
    pub(crate) fn spelled(&self, bytes_max: usize) -> Option<String> {
        if self.rows.is_some() {
            return None;
        }
        let spelled = format!("{:?} {:?}", self.text, self.args);
        Some(spelled).filter(|spelled| spelled.len() <= bytes_max)
    }

    fn for_postgres(self) -> Result<(String, PgArguments)> {
        let mut out = PgArguments::default();
        let text = self.append_postgres(0, &mut out)?;
        Ok((text, out))
    }

    /// Adds the arguments, and returns the text with its placeholders moved on by `offset`.
    fn append_postgres(self, offset: usize, out: &mut PgArguments) -> Result<String> {
        let mut text = self
            .text
            .replace("{for_update}", "FOR UPDATE")
            .replace("{skip_locked}", "FOR UPDATE SKIP LOCKED");
        if offset > 0 {
            text = renumber(&text, offset);
        }
        text = expand_keyed(&text, |keys| {
            let pairs: Vec<String> = keys.iter().map(|(column, key)| format!("t.{column} = {key}")).collect();
            format!("AS t USING {{rows}} WHERE {}", pairs.join(" AND "))
        });
        text = expand_each(&text, |table, name, conditions| {
            // A cached plan is made once, perhaps when the table had ten rows and reading all of it was the
            // shortest way; OFFSET keeps the planner from taking the two apart.
            format!("CROSS JOIN LATERAL (SELECT * FROM {table} {name} WHERE {conditions} OFFSET 0) {name}")
        });
        if let Some(rows) = &self.rows {
            text = text.replace("{rows}", &rows.relation_postgres(offset + self.args.len() + 1));
        }
        for arg in self.args {
            match arg {
                Arg::Int(v) => out.add(v),
                Arg::Text(v) => out.add(v),
                Arg::Bytes(v) => out.add(v),
            }
            .map_err(StoreError::bind)?;
        }
        if let Some(rows) = self.rows {
            rows.bind_postgres(out)?;
        }
        Ok(text)
    }

    /// How many placeholders it takes on PostgreSQL.
    fn width(&self) -> usize {
        self.args.len() + self.rows.as_ref().map_or(0, |rows| rows.columns.len())
    }

    fn for_sqlite(self) -> Result<(String, SqliteArguments<'static>)> {
        one_text(None, vec![self], None)
    }
}

/// Puts the database's own words for `{keyed: column = key, …}`, which stands in a `DELETE` for "the rows of
/// which the columns are the keys"; a key is a column of the bound table (`r.id`) or an argument.
fn expand_keyed(text: &str, words: impl FnOnce(&[(&str, &str)]) -> String) -> String {
    let Some((before, rest)) = text.split_once("{keyed: ") else { return text.to_owned() };
    let Some((keys, after)) = rest.split_once('}') else { return text.to_owned() };
    let keys: Vec<(&str, &str)> = keys.split(", ").filter_map(|pair| pair.split_once(" = ")).collect();
    [before, &words(&keys), after].concat()
}

/// Puts the database's own words for `{each: table t: conditions}`, which stands behind a bound table for
/// "joined with the rows of that other table that the conditions name, looked up for one row after the other".
fn expand_each(text: &str, words: impl FnOnce(&str, &str, &str) -> String) -> String {
    let Some((before, rest)) = text.split_once("{each: ") else { return text.to_owned() };
    let Some((join, after)) = rest.split_once('}') else { return text.to_owned() };
    let Some((table, conditions)) = join.split_once(": ") else { return text.to_owned() };
    let Some((table, name)) = table.split_once(' ') else { return text.to_owned() };
    [before, &words(table, name, conditions), after].concat()
}

/// Statements that write, and one that ends them, as one statement of PostgreSQL.
fn together(statements: Vec<Sql>, last: Sql) -> Result<(String, PgArguments)> {
    let mut args = PgArguments::default();
    let (mut text, mut offset) = (String::new(), 0);
    for (n, statement) in statements.into_iter().enumerate() {
        let width = statement.width();
        let part = statement.append_postgres(offset, &mut args)?;
        let word = if n == 0 { "WITH" } else { "," };
        text.push_str(&format!("{word} w{n} AS ({part})"));
        offset += width;
    }
    text.push(' ');
    text.push_str(&last.append_postgres(offset, &mut args)?);
    Ok((text, args))
}

/// Statements as one text of SQLite, with `first` before and `last` after them.
fn one_text(
    first: Option<&str>,
    statements: Vec<Sql>,
    last: Option<&str>,
) -> Result<(String, SqliteArguments<'static>)> {
    let cells = |sql: &Sql| {
        let rows = sql.rows.as_ref()?;
        Some(rows.places_sqlite()? * rows.columns.len())
    };
    let cells_len = statements.iter().filter_map(cells).sum();
    let mut all = SqliteText { cells: Vec::with_capacity(cells_len), cells_len, ..SqliteText::default() };
    for statement in first.map(sql).into_iter().chain(statements).chain(last.map(sql)) {
        all.push(statement);
    }
    all.finish()
}

/// One or more statements on their way to SQLite. Rows are anonymous arguments (`?`), which the driver
/// counts by themselves, from the first; the named ones (`$1`) come after all of them. (A name costs
/// SQLite a search through all names; among thousands of cells that would be what takes the time.)
#[derive(Default)]
struct SqliteText {
    text: String,
    cells: Vec<Arg>,
    /// How many cells there will be.
    cells_len: usize,
    named: Vec<Arg>,
}

impl SqliteText {
    fn push(&mut self, sql: Sql) {
        let mut text = sql.text.replace("{for_update}", "").replace("{skip_locked}", "");
        let before = self.cells_len + self.named.len();
        if before > 0 {
            text = renumber(&text, before);
        }
        for area in AREAS {
            let prefix = [area.name(), "."].concat();
            if text.contains(&prefix) {
                text = text.replace(&prefix, "");
            }
        }
        text = expand_keyed(&text, |keys| {
            let (columns, keys): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
            format!("WHERE ({}) IN (SELECT {} FROM {{rows}})", columns.join(", "), keys.join(", "))
        });
        text = expand_each(&text, |table, name, conditions| {
            format!("CROSS JOIN {table} {name} WHERE {conditions}")
        });
        self.named.extend(sql.args);
        if !self.text.is_empty() {
            self.text.push_str(";\n");
        }
        let Some(rows) = sql.rows else { return self.text.push_str(&text) };
        debug_assert_eq!(text.matches("{rows}").count(), 1, "a table is bound once: {text}");
        let (head, tail) = text.split_once("{rows}").unwrap_or((&text, ""));
        let first = self.cells_len + self.named.len() + 1;
        self.text.push_str(head);
        if let Some(places) = rows.places_sqlite() {
            rows.add_relation_sqlite(first, places, &mut self.text);
            self.named.push(rows.rows.len().into());
            let empty = (places - rows.rows.len()) * rows.columns.len();
            self.cells.extend(rows.rows.into_iter().flatten());
            self.cells.extend(std::iter::repeat_n(Arg::Int(None), empty));
        } else {
            self.text.push_str(&rows.json_relation_sqlite(first));
            self.named.push(rows.to_json().into());
        }
        self.text.push_str(tail);
    }

    fn finish(self) -> Result<(String, SqliteArguments<'static>)> {
        debug_assert_eq!(self.cells.len(), self.cells_len);
        let mut out = SqliteArguments::default();
        out.reserve(self.cells.len() + self.named.len(), 0);
        for arg in self.cells.into_iter().chain(self.named) {
            match arg {
                Arg::Int(v) => out.add(v),
                Arg::Text(v) => out.add(v),
                Arg::Bytes(v) => out.add(v),
            }
            .map_err(StoreError::bind)?;
        }
        Ok((self.text, out))
    }
}

/// `$1` becomes `$(1 + offset)`. Our statements hold no `$` but in placeholders.
fn renumber(text: &str, offset: usize) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..=at]);
        rest = &rest[at + 1..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        match rest[..digits].parse::<usize>() {
            Ok(n) => out.push_str(&(n + offset).to_string()),
            Err(_) => out.push_str(&rest[..digits]),
        }
        rest = &rest[digits..];
    }
    out.push_str(rest);
    out
}

/// A row of either database, read by column number.
pub enum Row {
    /// From PostgreSQL.
    Postgres(PgRow),
    /// From SQLite.
    Sqlite(SqliteRow),
}

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident -> $ty:ty) => {
        $(#[$doc])*
        pub fn $name(&self, column: usize) -> Result<$ty> {
            match self {
                Row::Postgres(row) => row.try_get(column),
                Row::Sqlite(row) => row.try_get(column),
            }
            .map_err(StoreError::from)
        }
    };
}

impl Row {
    getter! {
        /// A `BIGINT` that is not null.
        int -> i64
    }
    getter! {
        /// A `BIGINT`, perhaps null.
        opt_int -> Option<i64>
    }
    getter! {
        /// A `TEXT` that is not null.
        text -> String
    }
    getter! {
        /// A `TEXT`, perhaps null.
        opt_text -> Option<String>
    }
    getter! {
        /// Bytes that are not null.
        bytes -> Vec<u8>
    }
    getter! {
        /// Bytes, perhaps null.
        opt_bytes -> Option<Vec<u8>>
    }

    /// A flag: 0 or 1.
    pub fn flag(&self, column: usize) -> Result<bool> {
        Ok(self.int(column)? != 0)
    }
}

/// An open transaction. Dropped without [`Tx::commit`], it rolls back.
#[derive(Debug)]
pub enum Tx {
    /// On PostgreSQL.
    Postgres(Transaction<'static, Postgres>),
    /// On SQLite.
    Sqlite(Transaction<'static, Sqlite>),
    /// Of the journal's writer, on SQLite.
    Append(AppendTx),
}

/// A transaction of the journal's writer on SQLite. It begins in the trip of its first reads
/// ([`Tx::fetch_each`]) and ends in that of its last statements ([`Tx::commit_with`]): under load, trips to the
/// database's thread are what a batch waits for.
#[derive(Debug)]
pub struct AppendTx {
    connection: Option<PoolConnection<Sqlite>>,
    is_begun: bool,
}

impl AppendTx {
    fn connection(&mut self) -> Result<&mut SqliteConnection> {
        // It is only taken out when the transaction has ended.
        Ok(self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)?)
    }

    /// The connection, with the transaction begun.
    async fn begun(&mut self) -> Result<&mut SqliteConnection> {
        if !std::mem::replace(&mut self.is_begun, true) {
            sqlx::Executor::execute(self.connection()?, BEGIN_IMMEDIATE).await?;
        }
        self.connection()
    }

    /// Ends it after a failure: with it, or with its connection.
    async fn abandon(mut self) {
        if !self.is_begun {
            return;
        }
        if let Ok(connection) = self.connection()
            && sqlx::Executor::execute(connection, "ROLLBACK").await.is_ok()
        {
            self.is_begun = false;
        }
    }
}

impl Drop for AppendTx {
    fn drop(&mut self) {
        if self.is_begun
            && let Some(connection) = self.connection.take()
        {
            // Nobody may get it as it is. Closing it rolls back.
            drop(connection.detach());
        }
    }
}

/// Runs the statements of a text and returns the rows of each. All of them must have answered: if the driver's
/// thread dies, its answers just end.
async fn each_result(
    connection: &mut SqliteConnection,
    text: &str,
    args: SqliteArguments<'static>,
    count: usize,
) -> Result<Vec<Vec<Row>>> {
    let (mut sets, mut rows) = (Vec::with_capacity(count), Vec::new());
    let mut results = sqlx::Executor::fetch_many(connection, sqlx::query_with(text, args));
    while let Some(result) = results.try_next().await? {
        match result {
            Either::Left(_) => sets.push(std::mem::take(&mut rows)),
            Either::Right(row) => rows.push(Row::Sqlite(row)),
        }
    }
    if sets.len() != count {
        return Err(sqlx::Error::WorkerCrashed.into());
    }
    Ok(sets)
}

/// Why a transaction did not commit.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// It surely did not.
    Before(StoreError),
    /// Perhaps it did.
    Unknown(StoreError),
}

impl Tx {
    /// The connection on SQLite, with the transaction begun.
    async fn on_sqlite(&mut self) -> Result<&mut SqliteConnection> {
        match self {
            Tx::Postgres(_) => Err(sqlx::Error::WorkerCrashed.into()),
            Tx::Sqlite(tx) => Ok(&mut **tx),
            Tx::Append(tx) => tx.begun().await,
        }
    }

    /// Runs a statement and returns its rows.
    pub async fn fetch_all(&mut self, sql: Sql) -> Result<Vec<Row>> {
        match self {
            Tx::Postgres(tx) => {
                let (text, args) = sql.for_postgres()?;
                let rows = sqlx::query_with(&text, args).fetch_all(&mut **tx).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
            Tx::Sqlite(_) | Tx::Append(_) => {
                let (text, args) = sql.for_sqlite()?;
                let rows = sqlx::query_with(&text, args).fetch_all(self.on_sqlite().await?).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    /// Runs several statements in this order and returns the rows of each: in one trip on SQLite.
    pub async fn fetch_each(&mut self, statements: Vec<Sql>) -> Result<Vec<Vec<Row>>> {
        let mut sets = Vec::with_capacity(statements.len());
        if let Tx::Postgres(_) = self {
            for statement in statements {
                sets.push(self.fetch_all(statement).await?);
            }
            return Ok(sets);
        }
        let count = statements.len();
        if let Tx::Append(tx) = self
            && !tx.is_begun
        {
            let (text, args) = one_text(Some(BEGIN_IMMEDIATE), statements, None)?;
            tx.is_begun = true;
            let mut sets = each_result(tx.connection()?, &text, args, 1 + count).await?;
            return Ok(sets.split_off(1));
        }
        let (text, args) = one_text(None, statements, None)?;
        each_result(self.on_sqlite().await?, &text, args, count).await
    }

    /// Runs a statement and returns its first row, if any.
    pub async fn fetch_optional(&mut self, sql: Sql) -> Result<Option<Row>> {
        Ok(self.fetch_all(sql).await?.into_iter().next())
    }

    /// Runs a statement and returns how many rows it changed.
    pub async fn execute(&mut self, sql: Sql) -> Result<u64> {
        match self {
            Tx::Postgres(tx) => {
                let (text, args) = sql.for_postgres()?;
                Ok(sqlx::query_with(&text, args).execute(&mut **tx).await?.rows_affected())
            }
            Tx::Sqlite(_) | Tx::Append(_) => {
                let (text, args) = sql.for_sqlite()?;
                Ok(sqlx::query_with(&text, args).execute(self.on_sqlite().await?).await?.rows_affected())
            }
        }
    }

    /// Runs several statements that write, none of which needs to see what another one wrote, in one
    /// round trip: as one statement with data-modifying `WITH` on PostgreSQL, as one text on SQLite.
    pub async fn execute_all(&mut self, statements: Vec<Sql>) -> Result<()> {
        if statements.is_empty() {
            return Ok(());
        }
        if let Tx::Postgres(tx) = self {
            let (text, args) = together(statements, sql("SELECT 1"))?;
            sqlx::query_with(&text, args).execute(&mut **tx).await?;
            return Ok(());
        }
        let (text, args) = one_text(None, statements, None)?;
        sqlx::query_with(&text, args).execute(self.on_sqlite().await?).await?;
        Ok(())
    }

    /// Runs statements as [`Tx::execute_all`] does, tells other processes of it, and commits, in as few trips
    /// as the database allows.
    pub(crate) async fn commit_with(
        self,
        statements: Vec<Sql>,
        channel: &str,
        payload: &str,
    ) -> std::result::Result<(), CommitError> {
        match self {
            Tx::Postgres(mut tx) => {
                let notify = sql("SELECT pg_notify($1, $2)").bind(channel).bind(payload);
                let (text, args) = together(statements, notify).map_err(CommitError::Before)?;
                let written = sqlx::query_with(&text, args).execute(&mut *tx).await;
                written.map_err(|error| CommitError::Before(error.into()))?;
                tx.commit().await.map_err(|error| CommitError::Unknown(error.into()))
            }
            mut tx @ Tx::Sqlite(_) => {
                tx.execute_all(statements).await.map_err(CommitError::Before)?;
                tx.commit().await.map_err(CommitError::Unknown)
            }
            Tx::Append(mut tx) => {
                let count = statements.len() + 1;
                let text = one_text(None, statements, Some("COMMIT"));
                let (text, args) = text.map_err(CommitError::Before)?;
                let connection = tx.begun().await.map_err(CommitError::Before)?;
                match each_result(connection, &text, args, count).await {
                    Ok(_) => tx.is_begun = false,
                    Err(error) => {
                        tx.abandon().await;
                        return Err(CommitError::Unknown(error));
                    }
                }
                Ok(())
            }
        }
    }

    /// Makes this transaction's commit lazy where the database can: a crash may undo it as a whole.
    pub async fn commit_lazily(&mut self) -> Result<()> {
        match self {
            Tx::Postgres(_) => self.execute(sql("SET LOCAL synchronous_commit = off")).await.map(drop),
            // The model's file has `synchronous = NORMAL`.
            Tx::Sqlite(_) | Tx::Append(_) => Ok(()),
        }
    }

    /// Tells other processes that something happened; they may also find out by polling.
    pub async fn notify(&mut self, channel: &str, payload: &str) -> Result<()> {
        match self {
            Tx::Postgres(_) => {
                let notify = sql("SELECT pg_notify($1, $2)").bind(channel).bind(payload);
                self.execute(notify).await.map(drop)
            }
            Tx::Sqlite(_) | Tx::Append(_) => Ok(()),
        }
    }

    /// Commits. An error leaves the outcome unknown.
    pub async fn commit(self) -> Result<()> {
        match self {
            Tx::Postgres(tx) => tx.commit().await?,
            Tx::Sqlite(tx) => tx.commit().await?,
            Tx::Append(mut tx) => {
                if tx.is_begun {
                    sqlx::Executor::execute(tx.connection()?, "COMMIT").await?;
                    tx.is_begun = false;
                }
            }
        }
        Ok(())
    }

    /// Rolls back.
    pub async fn rollback(self) -> Result<()> {
        match self {
            Tx::Postgres(tx) => tx.rollback().await?,
            Tx::Sqlite(tx) => tx.rollback().await?,
            Tx::Append(tx) => tx.abandon().await,
        }
        Ok(())
    }
}

#[derive(Debug)]
struct File {
    write: SqlitePool,
    read: SqlitePool,
}

/// The pools of one database.
#[derive(Debug)]
pub struct Backend {
    pools: Pools,
}

#[derive(Debug)]
enum Pools {
    Postgres {
        pool: PgPool,
        writer: PgPool,
        /// Of the journal's writer alone, opened by it: a connection is served by the runtime that opened it.
        appends: PgPool,
    },
    Sqlite {
        files: [File; 4],
    },
}

/// Page cache of a connection that reads, as SQLite's `cache_size`: KiB with a minus.
const SQLITE_READER_CACHE: &str = "-65536";
/// That of one that writes. Not more: a commit that has split a page of an index looks through all of its
/// cache (SQLite parks pages under a number beyond the file's end while it sorts them).
const SQLITE_WRITER_CACHE: &str = "-16384";
/// How a transaction that will write begins on SQLite: with the write lock.
const BEGIN_IMMEDIATE: &str = "BEGIN IMMEDIATE";
/// Read connections per SQLite file.
const SQLITE_READERS_MAX: u32 = 4;
/// How long a writer of PostgreSQL may wait for a lock, and sit idle in a transaction: it takes the
/// counter row away from a frozen node (D1).
const WRITER_TIMEOUT_MS: &str = "5000";
/// What a transaction that writes does without on PostgreSQL. Its statements go from a few keys to their
/// rows by an index; a planner that saw a table when it was small, or has never seen it, would read all of
/// it for every batch.
const BY_KEY: [&str; 5] =
    ["enable_seqscan", "enable_bitmapscan", "enable_material", "enable_hashjoin", "enable_mergejoin"];

impl Backend {
    /// Opens the pools. PostgreSQL must be reachable; SQLite files are made if they are missing.
    pub async fn connect(database: &Database) -> Result<Backend> {
        let pools = match database {
            Database::Postgres { url, connections_max } => connect_postgres(url, *connections_max).await?,
            Database::Sqlite { dir } => connect_sqlite(dir).await?,
        };
        Ok(Backend { pools })
    }

    /// Whether this is PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self.pools, Pools::Postgres { .. })
    }

    /// The pool to listen on, on PostgreSQL.
    pub(crate) fn postgres(&self) -> Option<&PgPool> {
        match &self.pools {
            Pools::Postgres { pool, .. } => Some(pool),
            Pools::Sqlite { .. } => None,
        }
    }

    fn file(files: &[File; 4], area: Area) -> &File {
        &files[area as usize]
    }

    /// Begins a transaction that will write to the area. On SQLite it holds the file's write lock.
    pub async fn begin_write(&self, area: Area) -> Result<Tx> {
        Ok(match &self.pools {
            Pools::Postgres { pool, writer, .. } => {
                let (pool, begin) = match area {
                    Area::Journal => (writer.clone(), "BEGIN".to_owned()),
                    _ => {
                        let settings = BY_KEY.map(|name| format!("; SET LOCAL {name} = off")).concat();
                        (pool.clone(), format!("BEGIN{settings}"))
                    }
                };
                Tx::Postgres(begun(async move { pool.begin_with(begin).await }).await?)
            }
            Pools::Sqlite { files } => {
                let pool = Self::file(files, area).write.clone();
                Tx::Sqlite(begun(async move { pool.begin_with(BEGIN_IMMEDIATE).await }).await?)
            }
        })
    }

    /// Begins a transaction of the journal's writer.
    pub(crate) async fn begin_append(&self) -> Result<Tx> {
        match &self.pools {
            Pools::Postgres { appends, .. } => {
                let pool = appends.clone();
                Ok(Tx::Postgres(begun(async move { pool.begin().await }).await?))
            }
            Pools::Sqlite { files } => {
                let connection = Some(Self::file(files, Area::Journal).write.acquire().await?);
                Ok(Tx::Append(AppendTx { connection, is_begun: false }))
            }
        }
    }

    /// Closes the connections of the journal's writer, before the runtime that serves them ends.
    pub(crate) async fn close_appends(&self) {
        match &self.pools {
            Pools::Postgres { appends, .. } => appends.close().await,
            Pools::Sqlite { files } => {
                // It comes back to the pool in a task of that runtime; who still needs the file opens another.
                if let Ok(connection) = Self::file(files, Area::Journal).write.acquire().await {
                    let _ = connection.close().await;
                }
            }
        }
    }

    /// Begins a transaction that only reads, all of it from one snapshot.
    pub async fn begin_read(&self, area: Area) -> Result<Tx> {
        Ok(match &self.pools {
            Pools::Postgres { pool, .. } => {
                let pool = pool.clone();
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Tx::Postgres(begun(async move { pool.begin_with(begin).await }).await?)
            }
            Pools::Sqlite { files } => {
                let pool = Self::file(files, area).read.clone();
                Tx::Sqlite(begun(async move { pool.begin().await }).await?)
            }
        })
    }

    /// Reads outside of a transaction.
    pub async fn fetch_all(&self, area: Area, sql: Sql) -> Result<Vec<Row>> {
        match &self.pools {
            Pools::Postgres { pool, .. } => {
                let (text, args) = sql.for_postgres()?;
                let rows = sqlx::query_with(&text, args).fetch_all(pool).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
            Pools::Sqlite { files } => {
                let (text, args) = sql.for_sqlite()?;
                let rows = sqlx::query_with(&text, args).fetch_all(&Self::file(files, area).read).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    /// Reads the first row outside of a transaction.
    pub async fn fetch_optional(&self, area: Area, sql: Sql) -> Result<Option<Row>> {
        Ok(self.fetch_all(area, sql).await?.into_iter().next())
    }

    /// Writes one statement in a transaction of its own and returns how many rows it changed.
    pub async fn execute(&self, area: Area, sql: Sql) -> Result<u64> {
        let mut tx = self.begin_write(area).await?;
        let changed = tx.execute(sql).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Brings the tables up to date. Safe to run from several processes at once.
    pub async fn migrate(&self) -> Result<()> {
        match &self.pools {
            Pools::Postgres { pool, .. } => sqlx::migrate!("migrations/postgres").run(pool).await?,
            Pools::Sqlite { files } => {
                sqlx::migrate!("migrations/sqlite/journal")
                    .run(&Self::file(files, Area::Journal).write)
                    .await?;
                sqlx::migrate!("migrations/sqlite/keys").run(&Self::file(files, Area::Keys).write).await?;
                sqlx::migrate!("migrations/sqlite/model").run(&Self::file(files, Area::Model).write).await?;
                sqlx::migrate!("migrations/sqlite/lanes").run(&Self::file(files, Area::Lanes).write).await?;
            }
        }
        Ok(())
    }

    /// Whether every migration of this build has been applied.
    pub async fn is_migrated(&self) -> Result<bool> {
        let (sql_text, want) = match &self.pools {
            Pools::Postgres { .. } => (
                "SELECT COUNT(*) FROM _sqlx_migrations WHERE success",
                sqlx::migrate!("migrations/postgres").iter().count(),
            ),
            Pools::Sqlite { .. } => (
                "SELECT COUNT(*) FROM _sqlx_migrations WHERE success",
                sqlx::migrate!("migrations/sqlite/lanes").iter().count(),
            ),
        };
        // SQLite's files are migrated in order, so the last one speaks for all.
        match self.fetch_optional(Area::Lanes, sql(sql_text)).await {
            Ok(Some(row)) => Ok(usize::try_from(row.int(0)?).unwrap_or(0) >= want),
            Ok(None) => Ok(false),
            Err(StoreError::Database(sqlx::Error::Database(_))) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Streams the rows of a long read from one snapshot, in chunks, without holding them all.
    pub async fn for_each(
        &self,
        area: Area,
        sql: Sql,
        mut each: impl FnMut(Row) -> Result<()>,
    ) -> Result<()> {
        match &self.pools {
            Pools::Postgres { pool, .. } => {
                let (text, args) = sql.for_postgres()?;
                let mut rows = sqlx::query_with(&text, args).fetch(pool);
                while let Some(row) = rows.try_next().await? {
                    each(Row::Postgres(row))?;
                }
            }
            Pools::Sqlite { files } => {
                let (text, args) = sql.for_sqlite()?;
                let mut rows = sqlx::query_with(&text, args).fetch(&Self::file(files, area).read);
                while let Some(row) = rows.try_next().await? {
                    each(Row::Sqlite(row))?;
                }
            }
        }
        Ok(())
    }

    /// Closes every connection.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Postgres { pool, writer, appends } => {
                appends.close().await;
                writer.close().await;
                pool.close().await;
            }
            Pools::Sqlite { files } => {
                for file in files {
                    file.read.close().await;
                    file.write.close().await;
                }
            }
        }
    }

    /// One connection of the journal's writer, for what needs a session of its own.
    pub async fn acquire_postgres(&self) -> Result<Option<PoolConnection<Postgres>>> {
        match &self.pools {
            Pools::Postgres { pool, .. } => Ok(Some(pool.acquire().await?)),
            Pools::Sqlite { .. } => Ok(None),
        }
    }
}

/// Begins a transaction in a task of its own, so that it is always begun, and rolled back if nobody wants it
/// any more. With sqlx 0.8.6 a caller that is dropped while it begins (a client hangs up) can leave the
/// transaction open on a connection that goes back to the pool: SQLite's file stays locked for everybody,
/// and on PostgreSQL whoever gets the connection next reads from the old snapshot.
async fn begun<DB: sqlx::Database>(
    begin: impl Future<Output = sqlx::Result<Transaction<'static, DB>>> + Send + 'static,
) -> Result<Transaction<'static, DB>> {
    Ok(tokio::spawn(begin).await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

async fn connect_postgres(url: &str, connections_max: u32) -> Result<Pools> {
    let options: PgConnectOptions = url.parse::<PgConnectOptions>()?.application_name("annals");
    let pool = PgPoolOptions::new()
        .max_connections(connections_max.max(4))
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options.clone())
        .await?;
    let writers = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(5))
        .after_connect(|connection, _| {
            Box::pin(async move {
                let by_key = BY_KEY.map(|name| format!("; SET {name} = off")).concat();
                let text = format!(
                    "SET idle_in_transaction_session_timeout = {WRITER_TIMEOUT_MS}; \
                     SET lock_timeout = {WRITER_TIMEOUT_MS}{by_key}"
                );
                sqlx::Executor::execute(connection, text.as_str()).await.map(drop)
            })
        });
    let writer = writers.clone().connect_with(options.clone()).await?;
    let appends = writers.connect_lazy_with(options);
    Ok(Pools::Postgres { pool, writer, appends })
}

async fn connect_sqlite(dir: &Path) -> Result<Pools> {
    std::fs::create_dir_all(dir).map_err(|source| StoreError::Folder { path: dir.to_owned(), source })?;
    let mut files = Vec::with_capacity(AREAS.len());
    for area in AREAS {
        // Read models can be rebuilt, and lanes repeat at worst; the truth and the keys must not be lost.
        let durable = matches!(area, Area::Journal | Area::Keys);
        let options = SqliteConnectOptions::new()
            .filename(dir.join(format!("{}.db", area.name())))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(if durable { SqliteSynchronous::Full } else { SqliteSynchronous::Normal })
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(false)
            .pragma("cache_size", SQLITE_WRITER_CACHE)
            // Whoever commits the last of these pages copies them back; pages that are written again and
            // again, as the ends of indexes are, are copied once.
            .pragma("wal_autocheckpoint", "16000")
            .pragma("journal_size_limit", "67108864")
            .pragma("temp_store", "memory");
        // A connection to a file does not break: to ask each time whether it works would cost as much as
        // the question.
        let pool = || SqlitePoolOptions::new().test_before_acquire(false);
        let write = pool()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options.clone())
            .await?;
        let read = pool()
            .max_connections(SQLITE_READERS_MAX)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options.pragma("query_only", "on").pragma("cache_size", SQLITE_READER_CACHE))
            .await?;
        files.push(File { write, read });
    }
    match <[File; 4]>::try_from(files) {
        Ok(files) => Ok(Pools::Sqlite { files }),
        Err(_) => unreachable!("one file per area"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_by_keys_has_the_words_of_each_database() {
        let delete = || {
            let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
            rows.push(vec!["acme".into(), "1".into()]);
            sql("DELETE FROM model.t {keyed: tenant = r.tenant, kind = $1, id = r.id}").bind("k").rows(rows)
        };
        let (text, _) = delete().for_postgres().unwrap();
        assert_eq!(
            text,
            "DELETE FROM model.t AS t USING UNNEST($2::text[], $3::text[]) AS r(tenant, id) \
             WHERE t.tenant = r.tenant AND t.kind = $1 AND t.id = r.id"
        );
        let (text, _) = delete().for_sqlite().unwrap();
        let select = || {
            let mut rows = Rows::new(&[("id", Col::Text)]);
            rows.push(vec!["1".into()]);
            sql("SELECT t.v FROM {rows} {each: model.t t: t.id = r.id AND t.kind = $1}").bind("k").rows(rows)
        };
        let (joined, _) = select().for_postgres().unwrap();
        assert_eq!(
            joined,
            "SELECT t.v FROM UNNEST($2::text[]) AS r(id) CROSS JOIN LATERAL \
             (SELECT * FROM model.t t WHERE t.id = r.id AND t.kind = $1 OFFSET 0) t"
        );
        let (joined, _) = select().for_sqlite().unwrap();
        assert!(joined.ends_with(" AS r CROSS JOIN t t WHERE t.id = r.id AND t.kind = $5"), "{joined}");
        let begin = "DELETE FROM t WHERE (tenant, kind, id) IN (SELECT r.tenant, $9, r.id FROM (SELECT ";
        assert!(text.starts_with(begin), "{text}");
    }

    /// A transaction of the writer that nobody ends is undone, and the next one gets the file.
    #[tokio::test]
    async fn an_append_that_is_dropped_rolls_back() {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::connect(&Database::Sqlite { dir: dir.path().to_owned() }).await.unwrap();
        backend.migrate().await.unwrap();
        let update = || sql("UPDATE journal.counter SET position = position + 1 WHERE id = 1");
        let position = || sql("SELECT position FROM journal.counter WHERE id = 1");
        let mut dropped = backend.begin_append().await.unwrap();
        dropped.execute(update()).await.unwrap();
        drop(dropped);
        let mut failed = backend.begin_append().await.unwrap();
        let sets = failed.fetch_each(vec![position(), position()]).await.unwrap();
        assert_eq!(sets.iter().map(|rows| rows[0].int(0).unwrap()).collect::<Vec<_>>(), [0, 0]);
        let wrong = sql("INSERT INTO journal.counter (id) VALUES (2)");
        let error = failed.commit_with(vec![update(), wrong], "c", "p").await;
        assert!(matches!(error, Err(CommitError::Unknown(_))), "{error:?}");
        let mut tx = backend.begin_append().await.unwrap();
        assert_eq!(tx.fetch_optional(position()).await.unwrap().unwrap().int(0).unwrap(), 0);
        tx.commit_with(vec![update()], "c", "p").await.unwrap();
        let row = backend.fetch_optional(Area::Journal, position()).await.unwrap().unwrap();
        assert_eq!(row.int(0).unwrap(), 1);
        backend.close().await;
    }
}
