//! Scopes: paths of components, such as `/company/team/user`.

/// The scope that holds every other one.
pub const ROOT: &str = "/";

/// Gives a path its one spelling: a leading slash, no trailing slash, no empty component.
///
/// `crew//a/` and `/crew/a` name the same scope; an empty path is the root.
pub fn normalize(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 1);
    for component in path.split('/').filter(|c| !c.is_empty()) {
        out.push('/');
        out.push_str(component);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// The paths from the root down to and including `path`, which must be normalised.
pub fn lineage(path: &str) -> impl Iterator<Item = &str> {
    let ends = path
        .char_indices()
        .skip(1)
        .filter(|&(_, c)| c == '/')
        .map(|(at, _)| at);
    let own = (path != ROOT).then_some(path.len());
    std::iter::once(ROOT).chain(ends.chain(own).map(|end| &path[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_per_scope() {
        for (given, expected) in [
            ("", "/"),
            ("/", "/"),
            ("///", "/"),
            ("a", "/a"),
            ("/a/", "/a"),
            ("a//b/", "/a/b"),
            ("/ä/ b", "/ä/ b"),
        ] {
            assert_eq!(normalize(given), expected);
        }
    }

    #[test]
    fn lineage_runs_from_the_root_to_the_scope_itself() {
        assert_eq!(lineage("/").collect::<Vec<_>>(), ["/"]);
        assert_eq!(
            lineage("/a/bé/c").collect::<Vec<_>>(),
            ["/", "/a", "/a/bé", "/a/bé/c"]
        );
    }
}
