//! What a user can get wrong with `natten denoise`: one clear error, exit code 2, and no file.

use std::fs;

use image::DynamicImage;

use crate::bad_input::assert_refused;
use crate::denoise::{crop, directory_with};
use crate::program::Directory;

fn directory() -> Directory {
    directory_with("in.png", &crop(40, 30))
}

fn assert_denoise_refused(directory: &Directory, words: &str, parts: &[&str]) {
    let words_given = ["denoise", "--backend", "reference"].into_iter().chain(words.split_whitespace());
    let finished = directory.natten(&words_given.collect::<Vec<_>>());
    assert_refused(words, directory, &finished, parts);
}

#[test]
fn options_that_are_wrong() {
    let directory = directory();
    for (words, parts) in [
        ("--sigma -1", &["sigma is -1", "from 0 to 255"][..]),
        ("--sigma NaN", &["sigma is NaN"]),
        ("--sigma inf", &["sigma is inf"]),
        ("--sigma 255.1", &["sigma is 255.1", "from 0 to 255"]),
        ("--sigma much", &["'much'", "--sigma"]),
        ("--strength -0.5", &["strength is -0.5"]),
        ("--strength NaN", &["strength is NaN"]),
        ("--strength 1e300", &["strength is 1", "from 0 to 100"]),
        ("--add-noise -25", &["add-noise is -25"]),
        ("--add-noise NaN", &["add-noise is NaN"]),
        ("--add-noise inf", &["add-noise is inf"]),
        ("--seed 3", &["--add-noise"]),
        ("--add-noise 5 --seed -3", &["--seed"]),
        ("--add-noise 5 --seed x", &["'x'", "--seed"]),
        ("--add-noise 5 --clean in.png", &["--add-noise", "--clean"]),
        ("--patch 6", &["patch is 6", "odd"]),
        ("--patch 0", &["patch is 0", "odd"]),
        ("--patch 33", &["patch is 33", "at most 31"]),
        ("--patch 18446744073709551615", &["patch is 18446744073709551615", "at most 31"]),
        ("--kernel-size 0 --sigma 5", &["kernel_size[0] is 0", "at least 1"]),
        ("--kernel-size -3", &["'-3'", "--kernel-size"]),
        ("--patch -7", &["'-7'", "--patch"]),
        ("--backend cpu", &["--backend"]),
        ("--side-by-side out.png", &["side-by-side is 'out.png'"]),
        ("--side-by-side both.gif", &["'both.gif'", ".jpeg"]),
        ("--side-by-side nowhere/both.png", &["'nowhere/both.png'"]),
        ("--frobnicate", &["--frobnicate"]),
        ("too.png", &["too.png"]),
    ] {
        assert_denoise_refused(&directory, &format!("in.png out.png {words}"), parts);
    }
    let finished = directory.natten(&["denoise", "in.png", "out.png", "--backend", "abacus"]);
    assert_refused("abacus", &directory, &finished, &["'abacus'", "reference"]);
    assert_denoise_refused(&directory, "in.png", &["<OUTPUT>"]);
    assert_denoise_refused(&directory, "", &["<INPUT>", "<OUTPUT>"]);
}

#[test]
fn pictures_that_cannot_be_read() {
    let directory = directory();
    let (png, jpeg) = {
        let other = directory_with("in.jpg", &crop(40, 30));
        (fs::read(directory.path("in.png")).unwrap(), fs::read(other.path("in.jpg")).unwrap())
    };
    fs::create_dir(directory.path("folder.png")).unwrap();
    for input in ["missing.png", "folder.png", "in.png/x.png"] {
        let parts = [&format!("cannot read '{input}'")[..]];
        assert_denoise_refused(&directory, &format!("{input} out.png"), &parts);
        assert_denoise_refused(&directory, &format!("in.png out.png --clean {input}"), &parts);
    }
    let mut flipped = png.clone();
    flipped[40] ^= 0xff;
    let mut endless = png.clone();
    endless[16..24].fill(0xff);
    let mut empty = png.clone();
    empty[16..20].fill(0);
    for (what, bytes) in [
        ("empty", &[][..]),
        ("text", b"This is a letter, not a picture."),
        ("gif", b"GIF89a\x01\0\x01\0\0\0\0;"),
        ("PNG's signature alone", &png[..8]),
        ("half a header", &png[..20]),
        ("half a PNG", &png[..png.len() / 2]),
        ("a PNG but for its last data", &png[..png.len() - 20]),
        ("a PNG with a flipped byte", &flipped),
        ("a PNG of 4294967295 pixels a side", &endless),
        ("a PNG without columns", &empty),
        ("JPEG's signature alone", &jpeg[..3]),
        ("half a JPEG", &jpeg[..jpeg.len() / 2]),
        ("a JPEG but for its last byte", &jpeg[..jpeg.len() - 1]),
    ] {
        fs::write(directory.path("broken"), bytes).unwrap();
        let finished = directory.natten(&["denoise", "broken", "out.png", "--backend", "reference"]);
        assert_refused(what, &directory, &finished, &["picture is 'broken'", "cannot be read as a picture"]);
    }
}

#[test]
fn pictures_that_do_not_fit() {
    let directory = directory();
    crop(40, 29).save(directory.path("lower.png")).unwrap();
    DynamicImage::from(crop(40, 30).to_luma8()).save(directory.path("grey.png")).unwrap();
    DynamicImage::from(crop(40, 30).to_rgba8()).save(directory.path("see-through.png")).unwrap();
    crop(12, 11).save(directory.path("tiny.png")).unwrap();
    for (words, parts) in [
        ("in.png out.png --clean lower.png", &["clean is 40x29 colour", "40x30 colour"][..]),
        ("in.png out.png --clean grey.png", &["clean is 40x30 grey", "40x30 colour"]),
        ("see-through.png out.jpg", &["'out.jpg'", "alpha", ".png"]),
        ("tiny.png out.png", &["12x11", "too small", "--sigma"]),
    ] {
        assert_denoise_refused(&directory, words, parts);
    }
}

#[test]
fn files_that_cannot_be_written() {
    let directory = directory();
    fs::create_dir(directory.path("folder.png")).unwrap();
    for (output, parts) in [
        ("out.gif", &["'out.gif'", "extension", ".jpeg"][..]),
        ("out", &["'out'", "extension"]),
        ("nowhere/out.png", &["'nowhere/out.png'"]),
        ("folder.png", &["'folder.png'"]),
        ("in.png/out.png", &["'in.png/out.png'"]),
    ] {
        assert_denoise_refused(&directory, &format!("in.png {output}"), parts);
    }
    assert_eq!(directory.entries(), ["folder.png", "in.png", "in.safetensors"]);
}
