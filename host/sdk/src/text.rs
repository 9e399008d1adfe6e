//! What searches by words have to know of scripts.

/// Whether a letter is of a script that has no spaces between words, or (Hangul) has them between
/// what is more than a word. SQLite's tokenizers take a whole sentence of it for one word.
pub fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{1100}'..='\u{11ff}'       // Hangul Jamo
        | '\u{2e80}'..='\u{2fdf}'     // radicals
        | '\u{3005}'..='\u{3007}'     // marks that repeat an ideograph, and zero
        | '\u{3040}'..='\u{31ff}'     // kana, Bopomofo, compatibility Jamo
        | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}'     // ideographs
        | '\u{a960}'..='\u{a97f}'
        | '\u{ac00}'..='\u{d7ff}'     // Hangul syllables
        | '\u{f900}'..='\u{faff}'
        | '\u{ff66}'..='\u{ffdc}'     // half-width kana and Jamo
        | '\u{20000}'..='\u{3ffff}') // further ideographs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_without_spaces_are_known() {
        assert!("東京にカナ서울〇ｶ𠀀".chars().all(is_unspaced));
        assert!(!"Straße né Москва שלום नमस्ते 1、。".chars().any(is_unspaced));
    }
}
