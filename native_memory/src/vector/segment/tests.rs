//! The file holds what was put in, and says so when it does not.

use proptest::prelude::*;

use super::*;
use crate::vector::Bitmap;
use crate::vector::scan::tests::noise;

fn no_fetch(_: i64, _: &mut [f32]) -> Result<(), String> {
    Err("not here".into())
}

fn tail(rows: &[(i64, Vec<f32>)], dimension: usize, keep_vectors: bool) -> Tail {
    let mut tail = Tail::new(dimension, keep_vectors).unwrap();
    for (id, vector) in rows {
        tail.append(*id, vector).unwrap();
    }
    tail
}

fn sample() -> Tail {
    tail(
        &[
            (3, vec![1.0, -2.0, 0.5]),
            (-1, vec![0.0; 3]),
            (9, vec![1e-40, 3.0, 4.0]),
        ],
        3,
        true,
    )
}

fn write(path: &Path, tail: &Tail, keep_vectors: bool) -> Result<Segment, SegmentError> {
    let source = SealSource {
        block: tail.block(),
        deleted: None,
    };
    Segment::write(
        path,
        tail.block().dimension,
        &[source],
        keep_vectors,
        no_fetch,
        &|| true,
    )
}

/// The same rows, whatever is kept beside them to find them faster.
fn assert_same(a: &CodeBlock<'_>, b: &CodeBlock<'_>) {
    assert_eq!((a.dimension, a.ids, a.norms), (b.dimension, b.ids, b.norms));
    assert_eq!(
        (a.scales, a.residuals, a.codes),
        (b.scales, b.residuals, b.codes)
    );
    assert_eq!(a.vectors, b.vectors);
}

/// The fine codes of all rows, their scales and residuals.
fn fine_of<'a>(block: &CodeBlock<'a>) -> (Vec<i8>, &'a [f32], &'a [f32]) {
    let (fine, stride) = (block.fine.unwrap(), stride(block.dimension));
    let rows: Vec<u32> = (0..block.len() as u32).collect();
    let mut codes = vec![1; rows.len() * stride];
    fine.read(&rows, stride, &mut codes).unwrap();
    (codes, fine.scales, fine.residuals)
}

/// The file of version 1 with the rows of a file without heads, as releases before wrote it.
fn version_1(bytes: &[u8], segment: &Segment) -> Vec<u8> {
    let mut old = bytes[..52].to_vec();
    old[8] = 1;
    old.resize(60, 0);
    old.extend(crc32fast::hash(&old).to_le_bytes());
    for column in &segment.columns[..6] {
        old.resize(old.len().next_multiple_of(LINE), 0);
        old.extend(&bytes[column.clone()]);
    }
    old
}

/// The same of a later version, which ended with slacks, with errors, or with residuals.
fn version_2_to_4(version: u8, bytes: &[u8], segment: &Segment) -> Vec<u8> {
    let columns = [AXES, FINE, BY_ID][usize::from(version) - 2];
    let mut old = bytes[..segment.columns[columns - 1].end].to_vec();
    old[8] = version;
    old[COMMON + 4 * columns.max(FINE)..HEADER - 4].fill(0);
    let sum = crc32fast::hash(&old[..HEADER - 4]);
    old[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
    old
}

/// Rows that are enough to have heads.
/// Rows that have heads: they differ mostly in which of some centres they are near.
fn many() -> Tail {
    let row = |row: i64| -> Vec<f32> {
        let centre = noise(1000 + row as u64 % 9, 256);
        let rest = noise(row as u64, 256);
        centre.iter().zip(rest).map(|(c, x)| c + x / 4.0).collect()
    };
    let rows: Vec<_> = (0..80).map(|number| (number, row(number))).collect();
    tail(&rows, 256, false)
}

/// A file with some of its bytes changed, opened and verified.
fn check(directory: &Path, bytes: &[u8]) -> Result<(), SegmentError> {
    let path = directory.join("changed.seg");
    fs::write(&path, bytes).unwrap();
    Segment::open(&path)?.verify(&|| true)
}

#[test]
fn work_that_is_told_to_stop_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    let mut tail = Tail::new(4096, false).unwrap();
    (0..2 * STEP / 4096).for_each(|row| {
        tail.append(row as i64, &noise(row as u64, 4096)).unwrap();
    });
    let source = SealSource {
        block: tail.block(),
        deleted: None,
    };
    for steps in 0..2 {
        let left = std::cell::Cell::new(steps);
        let go_on = || left.replace(left.get() - 1) > 0;
        let stopped = Segment::write(&path, 4096, &[source], false, no_fetch, &go_on);
        assert!(
            matches!(stopped, Err(SegmentError::Stopped(_))),
            "{stopped:?}"
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
    let segment = Segment::write(&path, 4096, &[source], false, no_fetch, &|| true).unwrap();
    assert_same(&segment.block(), &tail.block());
    assert!(matches!(
        segment.verify(&|| false),
        Err(SegmentError::Stopped(_))
    ));
    segment.verify(&|| true).unwrap();
}

#[test]
fn the_format_is_what_is_documented() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    let segment = write(&path, &sample(), true).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(
        &bytes[..28],
        b"CNMSEG\r\n\x05\0\0\0\x03\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0"
    );
    // Each column starts on a line: 3 * 8, 3 * 8, 3 * 4, 3 * 4, 3 * 64 bytes, then 3 * 3 * 4; the
    // mean with 3 * 4, 3 * 32, 3 * 4, 3 * 4.
    let starts: Vec<_> = segment.columns.iter().map(|column| column.start).collect();
    assert_eq!(
        starts[..AXES],
        [128, 192, 256, 320, 384, 576, 640, 704, 832, 896]
    );
    // Three rows have no heads and no hubs; 3 * 64, 3 * 4, 3 * 4, 3 * 4.
    assert_eq!(
        &starts[AXES..],
        [960, 960, 960, 960, 960, 960, 1152, 1216, 1280, 1344, 1344]
    );
    assert_eq!(bytes.len(), 1344);
    assert_eq!(
        &bytes[128..144],
        b"\x03\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"
    );
    assert_eq!(&bytes[384..388], [64, 129, 32, 0]); // 63.5 and 31.75, scaled to 127
    // Changes only with the version.
    assert_eq!(crc32fast::hash(&bytes), GOLDEN);
    for (version, golden) in [(2, GOLDEN_2), (3, GOLDEN_3), (4, GOLDEN_4)] {
        let old = version_2_to_4(version, &bytes, &segment);
        assert_eq!(crc32fast::hash(&old), golden);
    }
    assert_eq!(crc32fast::hash(&version_1(&bytes, &segment)), GOLDEN_1);
    let segment = write(&path, &many(), false).unwrap();
    let starts: Vec<_> = segment.columns.iter().map(|column| column.start).collect();
    // From the sketches on: 80 * 64, 80 * 4, 80 * 4, 64 * 256 * 4, 80 * 64, then 80 * 4 thrice;
    // 80 * 256, 80 * 4, 80 * 4, 80 * 4, 2 * 64.
    let sizes: Vec<_> = starts[SKETCHES..]
        .windows(2)
        .map(|two| two[1] - two[0])
        .collect();
    assert_eq!(
        sizes,
        [
            5120, 320, 320, 65536, 5120, 320, 320, 320, 20480, 320, 320, 320, 128
        ]
    );
    let bytes = fs::read(&path).unwrap();
    assert_eq!((bytes[24], bytes.len()), (2, starts[20] + 2 * 24));
}

const GOLDEN: u32 = 342_790_133;
const GOLDEN_4: u32 = 2_156_073_933;
const GOLDEN_3: u32 = 969_540_037;
const GOLDEN_2: u32 = 3_211_487_478;
const GOLDEN_1: u32 = 1_157_774_585;

#[test]
fn a_file_of_an_older_version_is_read_checked_and_sealed_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    for keep_vectors in [false, true] {
        let new = write(&path, &sample(), keep_vectors).unwrap();
        let current = fs::read(&path).unwrap();
        for (version, bytes) in [
            (1, version_1(&current, &new)),
            (2, version_2_to_4(2, &current, &new)),
            (3, version_2_to_4(3, &current, &new)),
            (4, version_2_to_4(4, &current, &new)),
        ] {
            let header = if version == 1 { 64 } else { HEADER };
            let old_path = directory.path().join("old.seg");
            fs::write(&old_path, &bytes).unwrap();
            let old = Segment::open(&old_path).unwrap();
            old.verify(&|| true).unwrap();
            assert!(old.is_outdated() && !new.is_outdated());
            assert_same(&old.block(), &new.block());
            let sketches = (version > 1).then_some(new.block().sketches).flatten();
            assert_eq!(old.block().sketches, sketches);

            let source = SealSource {
                block: old.block(),
                deleted: None,
            };
            let again =
                Segment::write(&path, 3, &[source], keep_vectors, no_fetch, &|| true).unwrap();
            assert_same(&again.block(), &new.block());
            assert_eq!(again.block().sketches, new.block().sketches);
            let (codes, scales, residuals) = fine_of(&again.block());
            if version < 4 {
                // What fine codes leave out is what codes do, without them.
                assert!(old.block().fine.is_none());
                assert!(codes.iter().all(|&code| code == 0));
                assert_eq!((scales, residuals), (&[0.0; 3][..], new.block().residuals));
            } else {
                assert_eq!((codes, scales, residuals), fine_of(&new.block()));
            }

            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 0x40;
                let matters = at < header || old.columns.iter().any(|column| column.contains(&at));
                assert_eq!(
                    check(directory.path(), &changed).is_err(),
                    matters,
                    "byte {at}"
                );
                assert!(check(directory.path(), &bytes[..at]).is_err(), "{at} bytes");
            }
        }
    }
}

#[test]
fn bytes_that_are_flipped_where_there_are_heads_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    let segment = write(&path, &many(), false).unwrap();
    let heads = segment.block().sketches.unwrap().heads.unwrap();
    assert_eq!(
        (heads.codes.len(), heads.axes.len()),
        (80 * HEAD, HEAD * 256)
    );
    let bytes = fs::read(&path).unwrap();
    assert!(check(directory.path(), &bytes).is_ok());
    // The first and the last byte of each column, and some between.
    let ends = segment.columns.iter().filter(|column| !column.is_empty());
    let places = ends.flat_map(|column| [column.start, column.end - 1]);
    for at in places.chain((0..bytes.len()).step_by(997)) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let matters = at < HEADER || segment.columns.iter().any(|column| column.contains(&at));
        assert_eq!(
            check(directory.path(), &changed).is_err(),
            matters,
            "byte {at}"
        );
    }
}

#[test]
fn every_flipped_byte_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    let columns = write(&path, &sample(), true).unwrap().columns.clone();
    let bytes = fs::read(&path).unwrap();
    assert!(check(directory.path(), &bytes).is_ok());
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        let result = check(directory.path(), &changed);
        // The zeros between columns mean nothing.
        let matters = at < HEADER || columns.iter().any(|column| column.contains(&at));
        assert_eq!(result.is_err(), matters, "byte {at}");
        if let Err(error) = result {
            assert!(error.to_string().contains("changed.seg"), "{error}");
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    write(&path, &sample(), true).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        let error = check(directory.path(), &bytes[..length]).unwrap_err();
        match error {
            SegmentError::NotASegment(_) => assert_eq!(length, 0),
            SegmentError::Length { found, .. } => assert_eq!(found, length as u64),
            other => panic!("{other}"),
        }
    }
    bytes.push(0);
    assert!(matches!(
        check(directory.path(), &bytes),
        Err(SegmentError::Length { .. })
    ));
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Segment::open(&directory.path().join("none.seg")).unwrap_err();
    assert!(matches!(&missing, SegmentError::Io { action: "open", .. }));
    assert!(missing.to_string().contains("none.seg"));
    let other = check(directory.path(), &[b'x'; 100]).unwrap_err();
    assert!(matches!(other, SegmentError::NotASegment(_)), "{other}");

    let path = directory.path().join("a.seg");
    write(&path, &sample(), false).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 7;
    let newer = check(directory.path(), &bytes).unwrap_err().to_string();
    assert!(
        newer.contains("changed.seg") && newer.contains("format 7"),
        "{newer}"
    );
    assert!(newer.contains("reads up to 5"), "{newer}");
}

#[test]
fn a_header_that_makes_no_sense_is_refused_even_with_its_checksum() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    write(&path, &sample(), true).unwrap();
    let bytes = fs::read(&path).unwrap();
    for (at, value) in [
        (8, 0),
        (12, 0),
        (14, 255),
        (19, 255),
        (20, 1),
        (23, 255),
        (24, 2),
        (24, 4),
    ] {
        let mut changed = bytes.clone();
        changed[at] = value;
        let sum = crc32fast::hash(&changed[..HEADER - 4]);
        changed[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
        let error = check(directory.path(), &changed).unwrap_err();
        let length = matches!(error, SegmentError::Length { .. });
        assert!(
            length || matches!(error, SegmentError::Invalid { .. }),
            "byte {at}: {error}"
        );
    }
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    write(&path, &sample(), false).unwrap();
    let before = fs::read(&path).unwrap();
    // The vectors are wanted, are not in the block, and cannot be fetched.
    let without = tail(&[(77, vec![1.0])], 1, false);
    let error = write(&path, &without, true).unwrap_err();
    assert!(
        matches!(&error, SegmentError::Row { id: 77, .. }),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

    let with = sample();
    let mixed = [&with, &without].map(|t| SealSource {
        block: t.block(),
        deleted: None,
    });
    let error = Segment::write(&path, 3, &mixed, false, no_fetch, &|| true).unwrap_err();
    assert!(matches!(error, SegmentError::Invalid { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);

    let nowhere = directory.path().join("none").join("a.seg");
    assert!(matches!(
        write(&nowhere, &without, false),
        Err(SegmentError::Io { .. })
    ));
}

#[test]
fn a_mapped_segment_survives_its_replacement_and_removal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    let first = write(&path, &sample(), true).unwrap();
    let second = write(&path, &tail(&[(1, vec![1.0])], 1, false), false).unwrap();
    fs::remove_file(&path).unwrap();
    assert_same(&first.block(), &sample().block());
    assert_eq!(second.block().ids, [1]);
    first.verify(&|| true).unwrap();
}

#[test]
fn no_rows_are_fine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.seg");
    let empty = Tail::new(5, true).unwrap();
    for keep_vectors in [false, true] {
        let segment = write(&path, &empty, keep_vectors).unwrap();
        segment.verify(&|| true).unwrap();
        assert_eq!(segment.block().sketches.unwrap().mean, [0.0; 5]);
        assert!(segment.is_empty() && segment.block().is_empty());
    }
}

#[test]
fn a_tail_is_unchanged_by_a_row_it_refuses() {
    let mut tail = sample();
    assert_eq!(
        tail.append(4, &[1.0, f32::NAN, 0.0]),
        Err(VectorError::NotFinite(1))
    );
    let wrong = VectorError::Dimension {
        expected: 3,
        found: 1,
    };
    assert_eq!(tail.append(4, &[1.0]), Err(wrong));
    assert_same(&tail.block(), &sample().block());
    assert_eq!(tail.append(4, &[1.0, 2.0, 3.0]), Ok(3));
    assert!(matches!(Tail::new(0, false), Err(VectorError::Empty)));
    assert!(matches!(
        Tail::new(MAX_DIMENSION + 1, false),
        Err(VectorError::TooLong(_))
    ));
}

#[test]
fn temporary_names_are_recognised() {
    assert!(is_temporary(Path::new("a.seg.17-0.tmp")));
    assert!(!is_temporary(Path::new("a.seg")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// What is sealed, and sealed again, is what was appended, without the deleted rows.
    #[test]
    fn sealing_keeps_the_rows(
        (dimension, rows) in (1_usize..140).prop_flat_map(|dimension| {
            let vector = prop::collection::vec(-9.0_f32..9.0, dimension);
            let row = ((any::<i64>(), vector), any::<bool>());
            (Just(dimension), prop::collection::vec(row, 0..150))
        }),
        split in any::<prop::sample::Index>(),
        kept in any::<(bool, bool)>(),
    ) {
        let (rows, dead): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let split = if rows.is_empty() { 0 } else { split.index(rows.len()) };
        let expected: Vec<_> = rows.iter().zip(&dead)
            .enumerate()
            .filter(|(i, (_, dead))| *i >= split || !**dead)
            .map(|(_, (row, _))| row.clone())
            .collect();
        let expected = tail(&expected, dimension, kept.1);

        let parts = [tail(&rows[..split], dimension, kept.0), tail(&rows[split..], dimension, true)];
        let dead: Bitmap = (0..split).filter(|&i| dead[i]).collect();
        let sources = [
            SealSource { block: parts[0].block(), deleted: Some(dead.words()) },
            SealSource { block: parts[1].block(), deleted: None },
        ];
        let mut fetched = rows[..split].iter().enumerate().filter(|(i, _)| !dead.contains(*i));
        let fetch = |id: i64, out: &mut [f32]| {
            let (_, (expected, vector)) = fetched.next().ok_or("one too many")?;
            assert_eq!(*expected, id);
            out.copy_from_slice(vector);
            Ok(())
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.seg");
        let segment = Segment::write(&path, dimension, &sources, kept.1, fetch, &|| true).unwrap();
        segment.verify(&|| true).unwrap();
        assert_same(&segment.block(), &expected.block());
        let sketches = segment.block().sketches.unwrap();
        let rows = expected.len();
        prop_assert_eq!((sketches.mean.len(), sketches.steps.len()), (dimension, rows));
        prop_assert_eq!(sketches.slacks.len(), rows);
        prop_assert_eq!(sketches.codes.len(), rows * sketch::stride(dimension));
        prop_assert!(sketches.heads.is_none());
        let again = SealSource { block: segment.block(), deleted: None };
        let path = directory.path().join("b.seg");
        let copy = Segment::write(&path, dimension, &[again], kept.1, no_fetch, &|| true).unwrap();
        assert_same(&copy.block(), &segment.block());
        prop_assert_eq!(copy.block().sketches, segment.block().sketches);
        prop_assert_eq!(fine_of(&segment.block()), fine_of(&expected.block()));
        prop_assert_eq!(fine_of(&copy.block()), fine_of(&expected.block()));
    }
}
