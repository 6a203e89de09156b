//! What COMMAND and the HELP subcommands answer, from the table of commands.

use super::argument_notation::{parse, write_arguments};
use super::command::TableQuery;
use super::command_error::{CommandError, words};
use super::command_table::{COMMANDS, CommandRow, KeyPlaces};
use super::reply_writer::{
    Version, write_array_len, write_bulk, write_command_error, write_int, write_map_len, write_null_array,
    write_set_len, write_simple,
};
use crate::wire::glob;

/// Answers COMMAND.
pub fn write_table(out: &mut Vec<u8>, version: Version, query: &TableQuery<'_>) {
    match query {
        TableQuery::All => write_rows(out, version, COMMANDS),
        TableQuery::Rows(names) => {
            write_array_len(out, names.len());
            for name in names {
                match CommandRow::find_full(name) {
                    Some(row) => write_row(out, version, row),
                    None => write_null_array(out, version),
                }
            }
        }
        TableQuery::Docs(names) => {
            let all = || COMMANDS.iter().collect::<Vec<_>>();
            let found = || names.iter().filter_map(|name| CommandRow::find_full(name)).collect();
            write_docs(out, version, &if names.is_empty() { all() } else { found() });
        }
        TableQuery::Count => write_int(out, COMMANDS.len() as i64),
        TableQuery::List => {
            write_names(out, COMMANDS.iter().flat_map(|row| std::iter::once(row).chain(row.subcommands)));
        }
        TableQuery::ListModule => write_array_len(out, 0),
        TableQuery::ListCategory(category) => write_names(
            out,
            with_subcommands(|row| {
                row.categories()
                    .iter()
                    .any(|own| own.as_bytes().get(1..).is_some_and(|own| own.eq_ignore_ascii_case(category)))
            }),
        ),
        TableQuery::ListPattern(pattern) => {
            let pattern = pattern.to_ascii_lowercase();
            write_names(out, with_subcommands(|row| glob::matches(&pattern, row.name.as_bytes())));
        }
        TableQuery::GetKeys(words) => match keys_of(words) {
            Ok(keys) => {
                write_array_len(out, keys.len());
                for key in keys {
                    write_bulk(out, key);
                }
            }
            Err(error) => write_command_error(out, &error),
        },
    }
}

fn with_subcommands(wanted: impl Fn(&CommandRow) -> bool) -> impl Iterator<Item = &'static CommandRow> {
    COMMANDS.iter().flat_map(|row| std::iter::once(row).chain(row.subcommands)).filter(move |row| wanted(row))
}

fn write_names(out: &mut Vec<u8>, rows: impl Iterator<Item = &'static CommandRow>) {
    let names: Vec<_> = rows.map(|row| row.name).collect();
    write_array_len(out, names.len());
    for name in names {
        write_bulk(out, name.as_bytes());
    }
}

fn write_rows(out: &mut Vec<u8>, version: Version, rows: &[CommandRow]) {
    write_array_len(out, rows.len());
    for row in rows {
        write_row(out, version, row);
    }
}

/// A row of COMMAND INFO. Keys are told by first, last and step; the later form of the same is left empty.
fn write_row(out: &mut Vec<u8>, version: Version, row: &CommandRow) {
    let (first, last, step) = row.keys.range();
    write_array_len(out, 10);
    write_bulk(out, row.name.as_bytes());
    write_int(out, row.arity);
    write_set_len(out, version, row.flags.names().count());
    for flag in row.flags.names() {
        write_simple(out, flag);
    }
    for place in [first, last, step] {
        write_int(out, place);
    }
    let categories = row.categories();
    write_set_len(out, version, categories.len());
    for category in categories {
        write_simple(out, category);
    }
    write_array_len(out, 0);
    write_array_len(out, 0);
    write_rows(out, version, row.subcommands);
}

fn write_docs(out: &mut Vec<u8>, version: Version, rows: &[&CommandRow]) {
    write_map_len(out, version, rows.len());
    for row in rows {
        let arguments = parse(row.arguments);
        let fields = 3 + usize::from(!arguments.is_empty()) + usize::from(!row.subcommands.is_empty());
        write_bulk(out, row.name.as_bytes());
        write_map_len(out, version, fields);
        for (name, text) in [("summary", row.summary), ("since", row.since), ("group", row.group)] {
            write_bulk(out, name.as_bytes());
            write_bulk(out, text.as_bytes());
        }
        if !arguments.is_empty() {
            write_bulk(out, b"arguments");
            write_arguments(&arguments, version, out);
        }
        if !row.subcommands.is_empty() {
            write_bulk(out, b"subcommands");
            write_docs(out, version, &row.subcommands.iter().collect::<Vec<_>>());
        }
    }
}

/// The keys of a command that COMMAND GETKEYS names.
fn keys_of<'a>(words: &[&'a [u8]]) -> Result<Vec<&'a [u8]>, CommandError> {
    let parent = words.first().and_then(|name| CommandRow::find(name)).ok_or(words::INVALID_COMMAND)?;
    let row = match words.get(1) {
        Some(sent) if !parent.subcommands.is_empty() => parent.find_subcommand(sent).ok_or(words::INVALID_COMMAND)?,
        _ => parent,
    };
    if row.keys == KeyPlaces::None {
        return Err(words::NO_KEYS);
    }
    if !row.takes(words.len()) {
        return Err(words::INVALID_ARGUMENTS);
    }
    let (first, last, step) = row.keys.range();
    let end = if last < 0 { words.len() } else { last as usize + 1 };
    let range = words.get(first as usize..end).unwrap_or_default();
    Ok(range.iter().copied().step_by(step as usize).collect())
}

/// What `CLIENT HELP` and the like answer: each line a simple string.
pub fn write_help(out: &mut Vec<u8>, row: &CommandRow) {
    let name = row.name.to_ascii_uppercase();
    write_array_len(out, 1 + 2 * row.subcommands.len());
    write_line(out, &format!("{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    for subcommand in row.subcommands {
        let own = subcommand.own_name().to_ascii_uppercase();
        write_line(out, format!("{own} {}", subcommand.arguments).trim_end());
        write_line(out, &format!("    {}", subcommand.summary));
    }
}

/// The line comes from the table and has no line end.
fn write_line(out: &mut Vec<u8>, line: &str) {
    out.push(b'+');
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
}
