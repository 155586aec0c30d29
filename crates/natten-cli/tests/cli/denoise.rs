//! `natten denoise` on crops of the bundled photograph: what it writes, what it prints, and that it denoises.

use std::path::{Path, PathBuf};

use image::{DynamicImage, GenericImageView};

use crate::program::{Directory, Finished};

/// Small windows and patches, so that the oracle is quick.
const SMALL: &[&str] = &["--backend", "reference", "--kernel-size", "9", "--patch", "5"];

/// A part of the bundled photograph that has skin, hair, edges and a flag.
pub(crate) fn crop(width: u32, height: u32) -> DynamicImage {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/astronaut.png");
    image::open(path).unwrap().crop_imm(150, 70, width, height)
}

/// A directory that has a picture.
pub(crate) fn directory_with(name: &str, picture: &DynamicImage) -> Directory {
    let directory = Directory::with_bytes(b"");
    picture.save(directory.path(name)).unwrap();
    directory
}

fn denoise(directory: &Directory, words: &str, more: &[&str]) -> Finished {
    let words = ["denoise"].into_iter().chain(words.split_whitespace()).chain(more.iter().copied());
    let finished = directory.natten(&words.collect::<Vec<_>>());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished
}

/// The two numbers of the line that tells the PSNR.
fn psnr(finished: &Finished) -> (f64, f64) {
    let line = finished.stdout.lines().find(|line| line.starts_with("PSNR")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[2], words[3], words[5], words[6]), ("dB", "before,", "dB", "after"), "{line}");
    (words[1].parse().unwrap(), words[4].parse().unwrap())
}

fn open(path: PathBuf) -> DynamicImage {
    image::open(path).unwrap()
}

fn psnr_of(a: &DynamicImage, b: &DynamicImage) -> f64 {
    let (a, b) = (a.to_rgb8(), b.to_rgb8());
    let squares: f64 = a.iter().zip(b.iter()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    10.0 * (255.0f64.powi(2) * a.len() as f64 / squares).log10()
}

#[test]
fn a_photograph_is_denoised() {
    let photograph = crop(96, 80);
    let directory = directory_with("in.png", &photograph);
    let words = "in.png out.png --add-noise 25 --seed 1 --side-by-side both.png";
    let finished = denoise(&directory, words, SMALL);
    let (before, after) = psnr(&finished);
    assert!((20.0..21.5).contains(&before), "{}", finished.stdout);
    assert!(after > before + 6.0, "{}", finished.stdout);

    let denoised = open(directory.path("out.png"));
    assert_eq!((denoised.dimensions(), denoised.color()), ((96, 80), photograph.color()));
    assert!((psnr_of(&photograph, &denoised) - after).abs() < 0.006);
    let both = open(directory.path("both.png"));
    assert_eq!(both.dimensions(), (3 * 96, 80));
    assert!((psnr_of(&photograph, &both.crop_imm(0, 0, 96, 80)) - before).abs() < 0.006);
    assert_eq!(both.crop_imm(96, 0, 96, 80), denoised);
    assert_eq!(both.crop_imm(192, 0, 96, 80), photograph);
}

#[test]
fn the_noise_is_estimated_well_enough() {
    let directory = directory_with("in.png", &crop(200, 160));
    for sigma in ["10", "25", "50"] {
        // A strength of 0 leaves the picture as it is, which is quick.
        let noisy = format!("in.png noisy.png --add-noise {sigma} --sigma {sigma} --strength 0");
        denoise(&directory, &noisy, SMALL);
        let finished =
            denoise(&directory, "noisy.png out.png --kernel-size 1 --patch 1", &["--backend", "reference"]);
        let line = finished.stdout.lines().find(|line| line.starts_with("noise")).unwrap();
        let found: f64 = line.split_whitespace().nth(2).unwrap().trim_end_matches(',').parse().unwrap();
        let sigma: f64 = sigma.parse().unwrap();
        assert!((found / sigma - 1.0).abs() < 0.05 && line.ends_with("estimated"), "{sigma}: {line}");
    }
}

#[test]
fn a_clean_picture_is_a_measure() {
    let photograph = crop(64, 48);
    let directory = directory_with("clean.png", &photograph);
    denoise(&directory, "clean.png noisy.png --add-noise 20 --sigma 20 --strength 0", SMALL);
    let finished = denoise(&directory, "noisy.png out.png --clean clean.png --sigma 20", SMALL);
    let (before, after) = psnr(&finished);
    assert!((psnr_of(&photograph, &open(directory.path("noisy.png"))) - before).abs() < 0.006);
    assert!((psnr_of(&photograph, &open(directory.path("out.png"))) - after).abs() < 0.006);
    assert!(after > before + 5.0, "{before} {after}");
    let silent = denoise(&directory, "noisy.png out.png --sigma 20", SMALL);
    assert!(!silent.stdout.contains("PSNR"), "{}", silent.stdout);
}

#[test]
fn the_same_seed_gives_the_same_file() {
    let directory = directory_with("in.png", &crop(40, 40));
    let bytes = |seed: &str, name: &str| {
        denoise(&directory, &format!("in.png {name} --add-noise 25 --seed {seed}"), SMALL);
        std::fs::read(directory.path(name)).unwrap()
    };
    let first = bytes("1", "a.png");
    assert_eq!(bytes("1", "b.png"), first);
    assert_ne!(bytes("2", "c.png"), first);
}

#[test]
fn kinds_of_pictures_are_kept() {
    let photograph = crop(60, 50);
    let alpha = |x: u32, y: u32| (x * 3 + y) as u8;
    let mut see_through = photograph.to_rgba8();
    see_through.enumerate_pixels_mut().for_each(|(x, y, pixel)| pixel.0[3] = alpha(x, y));
    for picture in [
        DynamicImage::from(photograph.to_luma8()),
        DynamicImage::from(photograph.to_luma_alpha8()),
        DynamicImage::from(photograph.to_luma16()),
        DynamicImage::from(see_through),
        DynamicImage::from(photograph.to_rgb16()),
    ] {
        let directory = directory_with("in.png", &picture);
        let (before, after) = psnr(&denoise(&directory, "in.png out.png --add-noise 25", SMALL));
        assert!(after > before + 5.0, "{:?}: {before} {after}", picture.color());
        let out = open(directory.path("out.png"));
        assert_eq!((out.color(), out.dimensions()), (picture.color(), picture.dimensions()));
        if picture.color() == image::ColorType::Rgba8 {
            assert!(out.to_rgba8().enumerate_pixels().all(|(x, y, pixel)| pixel.0[3] == alpha(x, y)));
        }
    }
}

#[test]
fn jpeg_goes_in_and_out() {
    let photograph = crop(64, 64);
    let directory = directory_with("in.jpg", &photograph);
    for name in ["out.jpg", "out.JPEG", "out.png"] {
        let (before, after) = psnr(&denoise(&directory, &format!("in.jpg {name} --add-noise 25"), SMALL));
        assert!(after > before + 5.0, "{before} {after}");
        let bytes = std::fs::read(directory.path(name)).unwrap();
        let format = image::guess_format(&bytes).unwrap();
        assert_eq!(format, image::ImageFormat::from_path(name).unwrap());
        // The noise is gone from the file too, whatever JPEG does to it.
        assert!(psnr_of(&photograph, &image::load_from_memory(&bytes).unwrap()) > before + 4.0);
    }
    let grey = directory_with("in.jpg", &DynamicImage::from(photograph.to_luma8()));
    denoise(&grey, "in.jpg out.jpg --add-noise 25", SMALL);
    assert_eq!(open(grey.path("out.jpg")).color(), image::ColorType::L8);
}

#[test]
fn pictures_smaller_than_the_window_clamp_it() {
    let given = ["--backend", "reference", "--sigma", "20"];
    for (width, height) in [(1, 1), (1, 9), (5, 3), (30, 2), (20, 21)] {
        let picture = crop(width, height);
        let directory = directory_with("in.png", &picture);
        let finished = denoise(&directory, "in.png out.png", &given);
        let window = format!("window   {}x{}, patch 7x7", width.min(21), height.min(21));
        assert!(finished.stdout.contains(&window), "{}", finished.stdout);
        let out = open(directory.path("out.png"));
        assert_eq!(out.dimensions(), (width, height));
        if width * height == 1 {
            assert_eq!(out, picture);
        }
    }
}

#[test]
fn without_noise_nothing_changes() {
    let flat = DynamicImage::from(image::RgbImage::from_pixel(60, 60, image::Rgb([10, 200, 77])));
    let directory = directory_with("in.png", &flat);
    let finished = denoise(&directory, "in.png out.png", SMALL);
    assert!(finished.stdout.contains("sigma 0.00, estimated"), "{}", finished.stdout);
    assert_eq!(open(directory.path("out.png")), flat);

    let photograph = crop(30, 20);
    let directory = directory_with("in.png", &photograph);
    denoise(&directory, "in.png out.png --sigma 0 --strength 5", SMALL);
    assert_eq!(open(directory.path("out.png")), photograph);
}

#[test]
fn the_input_may_be_the_output() {
    let directory = directory_with("in.png", &crop(40, 30));
    denoise(&directory, "in.png in.png --sigma 10", SMALL);
    assert_eq!(open(directory.path("in.png")).dimensions(), (40, 30));
    assert_eq!(directory.entries(), ["in.png", "in.safetensors"]);
}

#[cfg(feature = "cpu")]
#[test]
fn the_cpu_gives_what_the_oracle_gives() {
    let directory = directory_with("in.png", &crop(70, 90));
    for (backend, name) in [("cpu", "a.png"), ("reference", "b.png")] {
        let words = format!("in.png {name} --add-noise 25 --seed 1 --kernel-size 11 --backend {backend}");
        let finished = denoise(&directory, &words, &[]);
        assert!(finished.stdout.contains(&format!("on {backend}")), "{}", finished.stdout);
    }
    let [a, b] = ["a.png", "b.png"].map(|name| open(directory.path(name)).to_rgb8());
    // Rounding to a level may go either way.
    assert!(a.iter().zip(b.iter()).all(|(&a, &b)| a.abs_diff(b) <= 1));
}
