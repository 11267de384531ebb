//! Reads files of follows: one follow per line, `a b` for "a follows b". README.md has the grammar.

use std::io::{self, BufRead, Read};

use herald_model::UserId;
use herald_proto::v1::Follow;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use self::line::{Header, Line};

mod line;

/// Longest line. Two ids need at most 257 bytes; the rest allows for white space and quotes, and for ids that are too
/// long and are reported as such.
const LINE_BYTES_MAX: u64 = 4_096;

/// Which imported follows request pushes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Notify {
    None,
    All,
    /// This share of the follows, from 0 to 1. A hash of the two ids selects them, so that a repeated import changes
    /// nothing.
    Share(f64),
}

impl Notify {
    /// Clap value parser.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not none, all, or a share from 0 to 1 such as 0.05 or 5%");
        match text {
            "none" => return Ok(Self::None),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
            None => text.parse::<f64>(),
        };
        let share = share.map_err(|_| invalid())?;
        if (0.0..=1.0).contains(&share) {
            Ok(Self::Share(share))
        } else {
            Err(invalid())
        }
    }

    fn includes(self, follower: &str, author: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Share(share) => {
                let hash = xxh3_64(format!("{follower}\0{author}").as_bytes());
                (hash as f64) < share * u64::MAX as f64
            }
        }
    }
}

/// Options for converting lines to follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Each line `a b` also means "b follows a".
    pub(crate) mutual: bool,
    /// `None`: the follows say nothing about pushes, so the server keeps the setting of those that exist.
    pub(crate) notify: Option<Notify>,
}

impl Options {
    /// Follows per valid line.
    fn follows_per_line(self) -> u64 {
        if self.mutual { 2 } else { 1 }
    }
}

/// The follows of consecutive lines, with their line numbers.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) follows: Vec<Follow>,
    pub(crate) lines: Lines,
    /// The invalid lines.
    pub(crate) bad_lines: Vec<BadLine>,
    /// The header row, in the batch that has it.
    pub(crate) header: Option<HeaderRow>,
    /// Size of all lines of the batch, bytes.
    pub(crate) bytes: u64,
    /// All lines of the batch, including blank lines and comments.
    pub(crate) line_count: u64,
}

/// An invalid line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadLine {
    /// Line number, from 1.
    pub(crate) line: u64,
    pub(crate) reason: String,
}

/// The header row of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HeaderRow {
    /// Line number, from 1.
    pub(crate) line: u64,
    /// The names of the two columns.
    pub(crate) columns: [String; 2],
    /// Whether the author is the first column.
    pub(crate) author_first: bool,
}

/// Maps the index of a follow to its line number. Consecutive lines are stored as one run, so that the memory is small
/// for a file with few gaps.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    runs: Vec<Run>,
    follow_count: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    first_follow: u64,
    first_line: u64,
    line_count: u64,
    follows_per_line: u64,
}

impl Lines {
    /// Appends the follows of one line.
    fn push(&mut self, line: u64, follows_per_line: u64) {
        match self.runs.last_mut() {
            Some(last) if last.first_line + last.line_count == line => last.line_count += 1,
            _ => self.runs.push(Run {
                first_follow: self.follow_count,
                first_line: line,
                line_count: 1,
                follows_per_line,
            }),
        }
        self.follow_count += follows_per_line;
    }

    /// The number of lines up to this line number.
    pub(crate) fn count_to(&self, last: u64) -> u64 {
        let counts = self.runs.iter().map(|run| {
            let until = (last + 1).clamp(run.first_line, run.first_line + run.line_count);
            until - run.first_line
        });
        counts.sum()
    }

    /// The line number of the follow with this index, from 0; `None` past the end.
    pub(crate) fn line_of(&self, follow: u64) -> Option<u64> {
        let later = self.runs.partition_point(|run| run.first_follow <= follow);
        let run = self.runs.get(later.checked_sub(1)?)?;
        let line = (follow - run.first_follow) / run.follows_per_line;
        (line < run.line_count).then_some(run.first_line + line)
    }
}

/// Reads batches of follows from a file.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    options: Options,
    /// Number of lines read so far.
    line: u64,
    /// Whether the next line may be the header row: no line but blank ones and comments came before.
    header_possible: bool,
    /// Whether the header row names the author first.
    author_first: bool,
    buffer: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    pub(crate) const fn new(input: R, options: Options) -> Self {
        Self {
            input,
            options,
            line: 0,
            header_possible: true,
            author_first: false,
            buffer: Vec::new(),
        }
    }

    /// Reads the next batch of at least `size` follows and invalid lines, fewer at the end of the file; `None` after
    /// the last batch.
    pub(crate) fn next_batch(&mut self, size: usize) -> io::Result<Option<Batch>> {
        let mut batch = Batch::default();
        while batch.follows.len() + batch.bad_lines.len() < size {
            let bytes = self.read_line()?;
            if bytes == 0 {
                break;
            }
            self.line += 1;
            batch.bytes += bytes;
            batch.line_count += 1;
            let parsed = line::parse(&self.buffer, self.header_possible);
            if parsed != Ok(Line::Skipped) {
                self.header_possible = false;
            }
            match parsed {
                Ok(Line::Skipped) => {}
                Ok(Line::Header(Header {
                    columns,
                    author_first,
                })) => {
                    self.author_first = author_first;
                    batch.header = Some(HeaderRow {
                        line: self.line,
                        columns,
                        author_first,
                    });
                }
                Ok(Line::Pair(a, b)) => {
                    let (a, b) = if self.author_first { (b, a) } else { (a, b) };
                    let follow = |follower: &UserId, author: &UserId| Follow {
                        follower_id: follower.as_str().into(),
                        author_id: author.as_str().into(),
                        notify: (self.options.notify)
                            .map(|notify| notify.includes(follower.as_str(), author.as_str())),
                    };
                    batch.follows.push(follow(&a, &b));
                    if self.options.mutual {
                        batch.follows.push(follow(&b, &a));
                    }
                    batch.lines.push(self.line, self.options.follows_per_line());
                }
                Err(reason) => batch.bad_lines.push(BadLine {
                    line: self.line,
                    reason,
                }),
            }
        }
        Ok(if batch.line_count == 0 { None } else { Some(batch) })
    }

    /// Reads one line into the buffer and returns its length in bytes. The buffer receives at most [`LINE_BYTES_MAX`] +
    /// 1 bytes.
    fn read_line(&mut self) -> io::Result<u64> {
        self.buffer.clear();
        let read = (&mut self.input)
            .take(LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut self.buffer)? as u64;
        if read <= LINE_BYTES_MAX || self.buffer.ends_with(b"\n") {
            return Ok(read);
        }
        Ok(read + self.input.skip_until(b'\n')? as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, mutual: bool, size: usize) -> Vec<Batch> {
        let mut reader = Reader::new(text.as_bytes(), Options { mutual, notify: None });
        std::iter::from_fn(|| reader.next_batch(size).unwrap()).collect()
    }

    fn pairs(batch: &Batch) -> Vec<(&str, &str)> {
        batch
            .follows
            .iter()
            .map(|follow| (follow.follower_id.as_str(), follow.author_id.as_str()))
            .collect()
    }

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        let batches = read("\u{feff}1 2\r\n\n# a comment\n\t3\t4  \n", false, 100);
        assert_eq!(pairs(&batches[0]), [("1", "2"), ("3", "4")]);
        assert!(batches[0].bad_lines.is_empty());
        assert_eq!(batches[0].line_count, 4);
        assert_eq!(batches.len(), 1);
    }

    #[test]
    fn mutual_lines_give_two_follows() {
        assert_eq!(pairs(&read("1 2\n", true, 100)[0]), [("1", "2"), ("2", "1")]);
    }

    #[test]
    fn bad_lines_have_a_number_and_a_reason() {
        let long = "x".repeat(129);
        let endless = "y".repeat(9_000);
        let text = format!("1\n1 2 3\n4 4\n{long} 1\n1 a\u{7}\n{endless}\n5 6");
        let batch = &read(&text, false, 100)[0];
        let bad: Vec<(u64, &str)> = batch
            .bad_lines
            .iter()
            .map(|bad| (bad.line, bad.reason.as_str()))
            .collect();
        assert_eq!(bad.len(), 6, "{bad:?}");
        assert_eq!(bad[0], (1, "has one user id, needs two"));
        assert_eq!(bad[1], (2, "has more than two user ids"));
        assert_eq!(bad[2], (3, "a user can't follow themselves"));
        assert!(
            bad[3]
                .1
                .starts_with("the first user id must be at most 128 bytes")
        );
        assert!(
            bad[4]
                .1
                .starts_with("the second user id must not contain control")
        );
        assert_eq!(bad[5], (6, "is longer than 4096 bytes"));
        assert_eq!(pairs(batch), [("5", "6")]);
        assert_eq!(batch.bytes, text.len() as u64);
    }

    #[test]
    fn a_header_row_is_the_first_line_that_is_neither_blank_nor_a_comment() {
        let batch = &read(
            "# a comment\n\n\u{feff}Follower_ID,\"Author ID\"\n1,2\n",
            false,
            100,
        )[0];
        let header = batch.header.as_ref().unwrap();
        assert_eq!((header.line, header.author_first), (3, false));
        assert_eq!(header.columns, ["Follower_ID", "Author ID"]);
        assert_eq!(pairs(batch), [("1", "2")]);

        let batch = &read("1,2\nfollower,author\n", false, 100)[0];
        assert_eq!(batch.header, None);
        assert_eq!(pairs(batch), [("1", "2"), ("follower", "author")]);

        let batch = &read("bad\nfollower,author\n", false, 100)[0];
        assert_eq!(batch.header, None);
    }

    #[test]
    fn a_header_row_gives_the_order_of_the_columns() {
        let batches = read("followee;follower\n1;2\n3;4\n", false, 1);
        assert!(batches[0].header.as_ref().unwrap().author_first);
        assert_eq!(pairs(&batches[0]), [("2", "1")]);
        assert_eq!(batches[1].header, None);
        assert_eq!(pairs(&batches[1]), [("4", "3")]);
    }

    #[test]
    fn lines_after_an_invalid_one_are_read() {
        let mut reader = Reader::new(
            &b"1 \xff\n1 2\n"[..],
            Options {
                mutual: false,
                notify: None,
            },
        );
        let batch = reader.next_batch(10).unwrap().unwrap();
        assert_eq!(
            batch.bad_lines,
            [BadLine {
                line: 1,
                reason: "is not UTF-8".into()
            }]
        );
        assert_eq!(pairs(&batch), [("1", "2")]);
    }

    #[test]
    fn the_line_of_each_follow_is_found() {
        let text = "1 2\n3 4\n\nbad\n5 6\n# no\n7 8\n9 10\n";
        for (mutual, expected) in [
            (false, vec![1, 2, 5, 7, 8]),
            (true, vec![1, 1, 2, 2, 5, 5, 7, 7, 8, 8]),
        ] {
            let batches = read(text, mutual, 2);
            let found: Vec<u64> = batches
                .iter()
                .flat_map(|batch| (0..).map_while(|follow| batch.lines.line_of(follow)))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn lines_without_gaps_are_one_run() {
        let text = (1..=10_000)
            .map(|number| format!("a {number}"))
            .collect::<Vec<_>>()
            .join("\n");
        let lines = &read(&text, false, 10_000)[0].lines;
        assert_eq!(lines.runs.len(), 1);
        assert_eq!(lines.line_of(9_999), Some(10_000));
    }

    #[test]
    fn a_share_is_approximate_and_repeatable() {
        let half = Notify::parse("50%").unwrap();
        let included = || {
            (0..10_000)
                .filter(|n| half.includes(&n.to_string(), "1"))
                .collect::<Vec<i32>>()
        };
        assert_eq!(included(), included());
        assert!((4_500..5_500).contains(&included().len()));
        assert_eq!(Notify::parse("none").unwrap(), Notify::None);
        assert_eq!(Notify::parse("0.25").unwrap(), Notify::Share(0.25));
        for bad in ["", "some", "-0.1", "1.1", "101%", "NaN"] {
            assert!(Notify::parse(bad).is_err(), "{bad}");
        }
        assert!(Notify::parse("1").unwrap().includes("a", "b"));
        assert!(!Notify::parse("0").unwrap().includes("a", "b"));
    }

    proptest! {
        /// Every line of any file is a follow, an invalid line, or none of both, and no line is read twice or lost.
        #[test]
        fn any_file_is_read_to_its_end(
            file in herald_fuzz::near(Just(b"follower,author\na,b\n\"c\" d\n# e\nf\n\xff\xfe g\n".to_vec())),
            size in 1_usize..5,
            mutual: bool,
        ) {
            let mut reader = Reader::new(&file[..], Options { mutual, notify: Some(Notify::Share(0.5)) });
            let (mut bytes, mut lines) = (0, 0);
            while let Some(batch) = reader.next_batch(size).unwrap() {
                prop_assert!(batch.line_count > 0);
                prop_assert_eq!(batch.lines.line_of(batch.follows.len() as u64), None);
                for follow in 0..batch.follows.len() as u64 {
                    let line = batch.lines.line_of(follow).unwrap();
                    prop_assert!((lines + 1..=lines + batch.line_count).contains(&line));
                }
                bytes += batch.bytes;
                lines += batch.line_count;
            }
            prop_assert_eq!(bytes, file.len() as u64);
            prop_assert_eq!(lines, file.split_inclusive(|byte| *byte == b'\n').count() as u64);
        }

        /// A line without an end takes no more memory than the longest line.
        #[test]
        fn a_line_that_is_too_long_is_skipped(length in LINE_BYTES_MAX..4 * LINE_BYTES_MAX) {
            let mut file = vec![b'a'; length as usize];
            file.extend(b"\na b\n");
            let mut reader = Reader::new(&file[..], Options { mutual: false, notify: None });
            let batch = reader.next_batch(10).unwrap().unwrap();
            prop_assert_eq!((batch.bad_lines.len(), batch.follows.len()), (1, 1));
            prop_assert!(reader.buffer.capacity() as u64 <= 2 * LINE_BYTES_MAX);
        }
    }
}
