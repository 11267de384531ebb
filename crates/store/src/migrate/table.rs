//! Rows to move, column by column, and the two statements on them: one writes them, the other finds those that differ.

use std::fmt::Write as _;

use sqlx::{AssertSqlSafe, PgConnection, postgres::PgArguments, query::Query};

use crate::cluster::Attempt;

/// A table of the cluster engine.
#[derive(Debug)]
pub(super) struct Table {
    /// Name in the schema `herald`.
    pub(super) name: &'static str,
    /// Columns with their types. The first [`key`](Self::key) columns identify a row.
    pub(super) columns: &'static [(&'static str, Type)],
    /// Number of columns of the key.
    pub(super) key: usize,
    /// Whether a row with the same key is replaced. Only for single values, which a start of Herald writes too.
    pub(super) replaces: bool,
    /// Condition of the rows that are moved, beginning with the name of a column; empty: all rows of the table.
    pub(super) only: &'static str,
}

/// Type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Bigint,
    Integer,
    Smallint,
    Boolean,
    Text,
    Bytea,
    /// `bytea` that is encrypted when it is written: not compared, because each encryption differs.
    Sealed,
    /// Bound as text, because `unnest` would take arrays of arrays apart.
    Bigints,
    Integers,
}

impl Type {
    fn bound(self) -> &'static str {
        match self {
            Self::Bigint => "bigint",
            Self::Integer => "integer",
            Self::Smallint => "smallint",
            Self::Boolean => "boolean",
            Self::Text | Self::Bigints | Self::Integers => "text",
            Self::Bytea | Self::Sealed => "bytea",
        }
    }

    fn cast(self) -> &'static str {
        match self {
            Self::Bigints => "::bigint[]",
            Self::Integers => "::integer[]",
            _ => "",
        }
    }
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// For [`Type::Bigint`], [`Type::Integer`] and [`Type::Smallint`].
    Number(Option<i64>),
    Boolean(bool),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(Some(number))
    }
}

impl From<u64> for Value {
    /// Keeps the bits, as the engine does with ids that are hashes.
    fn from(number: u64) -> Self {
        Self::Number(Some(number.cast_signed()))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(Some(number.into()))
    }
}

impl From<i16> for Value {
    fn from(number: i16) -> Self {
        Self::Number(Some(number.into()))
    }
}

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Some(bytes))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(bytes: Option<Vec<u8>>) -> Self {
        Self::Bytes(bytes)
    }
}

/// The literal of an array of `bigint`.
pub(super) fn bigints(numbers: impl IntoIterator<Item = i64>) -> String {
    let mut literal = String::from("{");
    for (index, number) in numbers.into_iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(literal, "{comma}{number}");
    }
    literal.push('}');
    literal
}

/// A column of rows.
#[derive(Debug)]
enum Column {
    Bigint(Vec<Option<i64>>),
    Integer(Vec<Option<i32>>),
    Smallint(Vec<Option<i16>>),
    Boolean(Vec<bool>),
    Text(Vec<Option<String>>),
    Bytes(Vec<Option<Vec<u8>>>),
}

impl Column {
    fn new(kind: Type) -> Self {
        match kind {
            Type::Bigint => Self::Bigint(Vec::new()),
            Type::Integer => Self::Integer(Vec::new()),
            Type::Smallint => Self::Smallint(Vec::new()),
            Type::Boolean => Self::Boolean(Vec::new()),
            Type::Text | Type::Bigints | Type::Integers => Self::Text(Vec::new()),
            Type::Bytea | Type::Sealed => Self::Bytes(Vec::new()),
        }
    }

    /// Adds a value and returns its approximate size, bytes. A value of another type is a bug.
    fn push(&mut self, value: Value) -> usize {
        match (self, value) {
            (Self::Bigint(column), Value::Number(number)) => column.push(number),
            // Counts and channels, which the embedded engine has in fewer bits.
            (Self::Integer(column), Value::Number(number)) => column.push(number.map(|number| number as i32)),
            (Self::Smallint(column), Value::Number(number)) => {
                column.push(number.map(|number| number as i16));
            }
            (Self::Boolean(column), Value::Boolean(value)) => column.push(value),
            (Self::Text(column), Value::Text(text)) => {
                let size = text.as_ref().map_or(0, String::len);
                column.push(text);
                return size + 32;
            }
            (Self::Bytes(column), Value::Bytes(bytes)) => {
                let size = bytes.as_ref().map_or(0, Vec::len);
                column.push(bytes);
                return size + 32;
            }
            (column, value) => unreachable!("{value:?} is no value of {column:?}"),
        }
        16
    }

    /// The value of one row as text, for messages.
    fn show(&self, row: usize) -> String {
        match self {
            Self::Bigint(column) => column[row].map_or_else(|| "NULL".into(), |number| number.to_string()),
            Self::Integer(column) => column[row].map_or_else(|| "NULL".into(), |number| number.to_string()),
            Self::Smallint(column) => column[row].map_or_else(|| "NULL".into(), |number| number.to_string()),
            Self::Boolean(column) => column[row].to_string(),
            Self::Text(column) => format!("{:?}", column[row].as_deref().unwrap_or("")),
            Self::Bytes(column) => column[row].as_ref().map_or_else(
                || "NULL".into(),
                |bytes| format!("{:?}", String::from_utf8_lossy(bytes)),
            ),
        }
    }
}

/// Rows of one table.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) table: &'static Table,
    columns: Vec<Column>,
    len: usize,
    bytes: usize,
}

impl Rows {
    pub(super) fn new(table: &'static Table) -> Self {
        Self {
            table,
            columns: table.columns.iter().map(|(_, kind)| Column::new(*kind)).collect(),
            len: 0,
            bytes: 0,
        }
    }

    /// Adds a row: its values in the order of the columns.
    pub(super) fn push<const N: usize>(&mut self, values: [Value; N]) {
        debug_assert_eq!(N, self.columns.len(), "{}", self.table.name);
        for (column, value) in self.columns.iter_mut().zip(values) {
            self.bytes += column.push(value);
        }
        self.len += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The values of the first column, if they are numbers.
    pub(super) fn first_numbers(&self) -> impl Iterator<Item = u64> {
        let numbers = match self.columns.first() {
            Some(Column::Bigint(numbers)) => &numbers[..],
            _ => &[],
        };
        numbers.iter().flatten().map(|number| number.cast_unsigned())
    }

    /// Approximate size, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes the rows.
    pub(super) async fn insert(&self, connection: &mut PgConnection) -> Attempt<()> {
        if self.len == 0 {
            return Ok(());
        }
        let table = self.table;
        let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
        let values: Vec<String> = table
            .columns
            .iter()
            .map(|(name, kind)| format!("r.{name}{}", kind.cast()))
            .collect();
        let mut sql = format!(
            "INSERT INTO herald.{} ({}) SELECT {} FROM {}",
            table.name,
            names.join(", "),
            values.join(", "),
            self.source(""),
        );
        if table.replaces {
            let keys = names[..table.key].join(", ");
            let set: Vec<String> = names[table.key..]
                .iter()
                .map(|name| format!("{name} = excluded.{name}"))
                .collect();
            let _ = write!(sql, " ON CONFLICT ({keys}) DO UPDATE SET {}", set.join(", "));
        }
        self.bind(sqlx::query(AssertSqlSafe(sql)))
            .execute(connection)
            .await?;
        Ok(())
    }

    /// The first row that the table does not have, or has with other values, for a message.
    pub(super) async fn first_difference(&self, connection: &mut PgConnection) -> Attempt<Option<String>> {
        if self.len == 0 {
            return Ok(None);
        }
        let table = self.table;
        let (key, rest) = table.columns.split_at(table.key);
        let joined: Vec<String> = key
            .iter()
            .map(|(name, kind)| format!("t.{name} = r.{name}{}", kind.cast()))
            .collect();
        let mut differs = vec![format!("t.{} IS NULL", key[0].0)];
        let compared = rest.iter().filter(|(_, kind)| *kind != Type::Sealed);
        differs.extend(
            compared.map(|(name, kind)| format!("t.{name} IS DISTINCT FROM r.{name}{}", kind.cast())),
        );
        let only = if table.only.is_empty() {
            String::new()
        } else {
            format!(" AND t.{}", table.only)
        };
        let sql = format!(
            "SELECT r.row_number, t.{} IS NULL FROM {} LEFT JOIN herald.{} t ON {}{only} WHERE {}
            ORDER BY r.row_number LIMIT 1",
            key[0].0,
            self.source(", row_number"),
            table.name,
            joined.join(" AND "),
            differs.join(" OR "),
        );
        let query = self.bind(sqlx::query(AssertSqlSafe(sql))).persistent(false);
        let Some(row) = query.fetch_optional(connection).await? else {
            return Ok(None);
        };
        let number: i64 = sqlx::Row::try_get(&row, 0)?;
        let missing: bool = sqlx::Row::try_get(&row, 1)?;
        Ok(Some(self.describe(
            usize::try_from(number - 1).unwrap_or_default(),
            missing,
        )))
    }

    fn describe(&self, row: usize, missing: bool) -> String {
        let keys: Vec<String> = self
            .table
            .columns
            .iter()
            .zip(&self.columns)
            .take(self.table.key)
            .map(|((name, _), column)| format!("{name} {}", column.show(row)))
            .collect();
        let what = if missing { "is missing" } else { "has other values" };
        format!(
            "the row {} of the table {} {what}",
            keys.join(", "),
            self.table.name
        )
    }

    /// `unnest(…) AS r (…)` of all columns.
    fn source(&self, ordinality: &str) -> String {
        let arrays: Vec<String> = self
            .table
            .columns
            .iter()
            .enumerate()
            .map(|(index, (_, kind))| format!("${}::{}[]", index + 1, kind.bound()))
            .collect();
        let names: Vec<&str> = self.table.columns.iter().map(|(name, _)| *name).collect();
        let with = if ordinality.is_empty() {
            ""
        } else {
            " WITH ORDINALITY"
        };
        format!(
            "unnest({}){with} AS r ({}{ordinality})",
            arrays.join(", "),
            names.join(", ")
        )
    }

    fn bind<'q>(
        &'q self,
        mut query: Query<'q, sqlx::Postgres, PgArguments>,
    ) -> Query<'q, sqlx::Postgres, PgArguments> {
        for column in &self.columns {
            query = match column {
                Column::Bigint(values) => query.bind(values),
                Column::Integer(values) => query.bind(values),
                Column::Smallint(values) => query.bind(values),
                Column::Boolean(values) => query.bind(values),
                Column::Text(values) => query.bind(values),
                Column::Bytes(values) => query.bind(values),
            };
        }
        query
    }
}

/// Number of rows of a table.
pub(super) async fn count(connection: &mut PgConnection, table: &Table) -> Attempt<u64> {
    let only = if table.only.is_empty() {
        String::new()
    } else {
        format!(" WHERE {}", table.only)
    };
    let sql = format!("SELECT count(*) FROM herald.{}{only}", table.name);
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await?;
    Ok(rows.cast_unsigned())
}
