//! The peer of `load`'s network test: sends everything back.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// Serves `address` until it is killed.
pub fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept()?;
        println!("{peer} connected");
        thread::spawn(move || {
            let end = send_back(stream);
            println!("{peer} ended: {end:?}");
        });
    }
}

fn send_back(mut stream: TcpStream) -> io::Result<u64> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            count => {
                stream.write_all(&buffer[..count])?;
                total += count as u64;
            }
        }
    }
}
