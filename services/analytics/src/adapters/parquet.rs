//! Encodes rows as Parquet: one row group, Snappy compression, every column required.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::errors::Result;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::domain::{File, Row, Table};

/// The schema of a table. The columns `stream` and `sequence` identify the message of a row, so that a reader can check
/// for duplicates.
const fn schema(table: Table) -> &'static str {
    match table {
        Table::Posts => {
            "message posts {
                required binary stream (UTF8);
                required int64 sequence (INTEGER(64,false));
                required int64 post_id (INTEGER(64,false));
                required int32 author_key (INTEGER(32,false));
                required binary author_id (UTF8);
                required binary lane (UTF8);
                required int32 text_bytes (INTEGER(32,false));
                required int32 link_count (INTEGER(32,false));
                required int32 media_count (INTEGER(32,false));
                required int32 push_ttl_seconds (INTEGER(32,false));
                required int64 accepted_at (TIMESTAMP(MICROS,true));
            }"
        }
        Table::Deletions => {
            "message deletions {
                required binary stream (UTF8);
                required int64 sequence (INTEGER(64,false));
                required int64 post_id (INTEGER(64,false));
                required int32 author_key (INTEGER(32,false));
                required int64 deleted_at (TIMESTAMP(MICROS,true));
            }"
        }
        Table::Deliveries => {
            "message deliveries {
                required binary stream (UTF8);
                required int64 sequence (INTEGER(64,false));
                required int64 post_id (INTEGER(64,false));
                required int32 author_key (INTEGER(32,false));
                required binary channel (UTF8);
                required int64 chunk_id (INTEGER(64,false));
                required int64 revision (INTEGER(64,false));
                required int32 delivered_count (INTEGER(32,true));
                required int32 suppressed_count (INTEGER(32,true));
                required int32 expired_count (INTEGER(32,true));
                required int32 dead_count (INTEGER(32,true));
                required int64 accepted_at (TIMESTAMP(MICROS,true));
                required int64 settled_at (TIMESTAMP(MICROS,true));
            }"
        }
    }
}

/// Encodes a file.
pub(crate) fn encode(file: &File) -> Result<Bytes> {
    let schema = Arc::new(parse_message_type(schema(file.table))?);
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by(concat!("herald-analytics ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for column in columns(file) {
        // `columns` returns as many columns as the schema has.
        let Some(mut out) = group.next_column()? else {
            break;
        };
        match column {
            Column::Int64(values) => out.typed::<Int64Type>().write_batch(&values, None, None)?,
            Column::Int32(values) => out.typed::<Int32Type>().write_batch(&values, None, None)?,
            Column::Text(values) => out.typed::<ByteArrayType>().write_batch(&values, None, None)?,
        };
        out.close()?;
    }
    group.close()?;
    Ok(writer.into_inner()?.into())
}

enum Column {
    Int64(Vec<i64>),
    Int32(Vec<i32>),
    Text(Vec<ByteArray>),
}

/// The columns in the order of the schema. Parquet's physical integers are signed; the schema marks the unsigned ones.
fn columns(file: &File) -> Vec<Column> {
    let entries = &file.entries;
    let stream = ByteArray::from(file.stream);
    let mut columns = vec![
        Column::Text(vec![stream; entries.len()]),
        Column::Int64(
            entries
                .iter()
                .map(|entry| entry.position.sequence.cast_signed())
                .collect(),
        ),
    ];
    columns.extend(match file.table {
        Table::Posts => {
            let rows = || {
                entries.iter().filter_map(|entry| {
                    if let Row::Post(row) = &entry.row {
                        Some(row)
                    } else {
                        None
                    }
                })
            };
            let int64 = |value: fn(&crate::domain::PostRow) -> i64| {
                Column::Int64(rows().map(|row| value(row)).collect())
            };
            let int32 = |value: fn(&crate::domain::PostRow) -> u32| {
                Column::Int32(rows().map(|row| value(row).cast_signed()).collect())
            };
            vec![
                int64(|row| row.post.0.cast_signed()),
                int32(|row| row.author.0),
                Column::Text(rows().map(|row| row.author_id.as_str().into()).collect()),
                Column::Text(rows().map(|row| row.lane.as_str().into()).collect()),
                int32(|row| row.text_bytes),
                int32(|row| row.links),
                int32(|row| row.media),
                int32(|row| row.push_ttl_seconds),
                int64(|row| row.accepted_at.0),
            ]
        }
        Table::Deletions => {
            let rows = || {
                entries.iter().filter_map(|entry| {
                    if let Row::Deletion(row) = &entry.row {
                        Some(row)
                    } else {
                        None
                    }
                })
            };
            vec![
                Column::Int64(rows().map(|row| row.post.0.cast_signed()).collect()),
                Column::Int32(rows().map(|row| row.author.0.cast_signed()).collect()),
                Column::Int64(rows().map(|row| row.deleted_at.0).collect()),
            ]
        }
        Table::Deliveries => {
            let rows = || {
                entries.iter().filter_map(|entry| {
                    if let Row::Deliveries(row) = &entry.row {
                        Some(row)
                    } else {
                        None
                    }
                })
            };
            let int64 =
                |value: fn(&crate::domain::DeliveriesRow) -> i64| Column::Int64(rows().map(value).collect());
            let int32 =
                |value: fn(&crate::domain::DeliveriesRow) -> i32| Column::Int32(rows().map(value).collect());
            vec![
                int64(|row| row.chunk.post.0.cast_signed()),
                int32(|row| row.author.0.cast_signed()),
                Column::Text(rows().map(|row| row.chunk.channel.as_str().into()).collect()),
                int64(|row| row.chunk.chunk.0.cast_signed()),
                int64(|row| row.state.revision.cast_signed()),
                int32(|row| row.delta.delivered),
                int32(|row| row.delta.suppressed),
                int32(|row| row.delta.expired),
                int32(|row| row.delta.dead),
                int64(|row| row.accepted_at.0),
                int64(|row| row.settled_at.0),
            ]
        }
    });
    columns
}
