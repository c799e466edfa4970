//! Tests of reader and writer together, and against GNU tar.

mod damage;
mod gnu_tar;
mod handmade;
mod roundtrip;
