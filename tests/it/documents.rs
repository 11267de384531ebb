//! The documents name files that exist: repository paths in back-quotes, and relative links.

use std::path::{Path, PathBuf};

/// Documents whose repository paths are checked, besides those in `docs/`.
const DOCUMENTS: [&str; 3] = ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"];

/// Folders that a repository path begins with.
const FOLDERS: [&str; 7] = [
    "crates/",
    "services/",
    "tests/",
    "proto/",
    "xtask/",
    "docs/",
    "examples/",
];

/// Folders without documents of the repository.
const SKIPPED: [&str; 3] = ["target", ".git", "node_modules"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a Markdown file without its fenced code blocks.
fn without_code_blocks(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.push_str(line);
        }
        prose.push('\n');
    }
    prose
}

/// The repository paths in back-quotes. A path ends at a space, and `/*` at its end stands for its folder.
fn quoted_paths(prose: &str) -> Vec<&str> {
    prose
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .flat_map(str::split_whitespace)
        .filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)))
        .map(|path| path.trim_end_matches("/*"))
        .collect()
}

/// The targets of inline links that are paths relative to the document, without their anchors.
fn relative_links(prose: &str) -> Vec<&str> {
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next())
        .filter(|target| !target.contains(':'))
        .filter_map(|target| target.split('#').next())
        .filter(|path| !path.is_empty())
        .collect()
}

/// The paths that do not exist in `folder`.
fn missing<'a>(folder: &Path, paths: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    paths
        .into_iter()
        .filter(|path| !folder.join(path).exists())
        .collect()
}

/// All Markdown files below a folder.
fn markdown_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            if !SKIPPED.iter().any(|name| path.ends_with(name)) {
                files.extend(markdown_files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
    files
}

#[test]
fn every_quoted_path_exists() {
    let mut documents: Vec<PathBuf> = DOCUMENTS.iter().map(|name| root().join(name)).collect();
    documents.extend(markdown_files(&root().join("docs")));
    let mut checked = 0;
    for document in documents {
        let prose = without_code_blocks(&std::fs::read_to_string(&document).unwrap());
        let paths = quoted_paths(&prose);
        checked += paths.len();
        let missing = missing(&root(), paths);
        assert!(
            missing.is_empty(),
            "{} names files that do not exist: {missing:?}",
            document.display()
        );
    }
    assert!(checked > 50, "only {checked} paths were found in the documents");
}

#[test]
fn every_relative_link_resolves() {
    let mut checked = 0;
    for document in markdown_files(&root()) {
        let prose = without_code_blocks(&std::fs::read_to_string(&document).unwrap());
        let links = relative_links(&prose);
        checked += links.len();
        let missing = missing(document.parent().unwrap(), links);
        assert!(
            missing.is_empty(),
            "{} links to files that do not exist: {missing:?}",
            document.display()
        );
    }
    assert!(checked > 15, "only {checked} relative links were found");
}

#[test]
fn missing_paths_and_links_are_found() {
    let text = "See `crates/no-such-crate/src/lib.rs`, `services/*`, `xtask/` and `cargo test`.\n\
        ```console\n$ cat `docs/in-a-code-block.md`\n```\n\
        [a](docs/no-such-file.md#part), [b](docs/RELIABILITY.md#promised), [c](#here), [d](https://example.org/x).\n";
    let prose = without_code_blocks(text);
    let paths = quoted_paths(&prose);
    assert_eq!(paths, ["crates/no-such-crate/src/lib.rs", "services", "xtask/"]);
    assert_eq!(missing(&root(), paths), ["crates/no-such-crate/src/lib.rs"]);
    let links = relative_links(&prose);
    assert_eq!(links, ["docs/no-such-file.md", "docs/RELIABILITY.md"]);
    assert_eq!(missing(&root(), links), ["docs/no-such-file.md"]);
}
