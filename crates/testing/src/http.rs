//! An HTTP server with chosen answers, for what real servers say only in trouble.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

/// An answer to a request.
#[derive(Clone)]
pub struct Answer {
    /// Code and phrase.
    pub status: &'static str,
    /// An `etag` header, if any.
    pub etag: Option<&'static str>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// Reads a request to its end and answers it.
    fn write(&self, connection: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(connection);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        let Self { status, etag, body } = self;
        let etag = etag.map(|etag| format!("etag: {etag}\r\n"));
        let (etag, length) = (etag.unwrap_or_default(), body.len());
        write!(
            reader.get_mut(),
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{etag}\r\n{body}"
        )
    }
}

/// Starts a server that gives each request the next answer and ends after the last one. Returns its
/// address.
///
/// # Panics
/// No port is free.
pub fn answering(answers: impl Iterator<Item = Answer> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((connection, _)) = listener.accept() else {
                return;
            };
            // A client that hung up needs no answer.
            let _ = answer.write(connection);
        }
    });
    format!("http://{address}")
}
