//! An HTTP server with chosen answers, for what real servers say only in trouble.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};

/// An answer to a request.
#[derive(Clone, Default)]
pub struct Answer {
    /// Code and phrase.
    pub status: &'static str,
    /// An `etag` header, if any.
    pub etag: Option<&'static str>,
    /// The body.
    pub body: String,
}

impl Answer {
    fn write(&self, connection: &mut impl io::Write) -> io::Result<()> {
        let Self { status, etag, body } = self;
        let etag = etag.map(|etag| format!("etag: {etag}\r\n"));
        let (etag, length) = (etag.unwrap_or_default(), body.len());
        write!(
            connection,
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
            let _ = request(&connection).and_then(|_| answer.write(&mut &connection));
        }
    });
    format!("http://{address}")
}

/// Starts a server that chooses each answer by the request's first line. A request without an
/// answer is held: its connection stays open until the process ends. Returns the server's address.
///
/// # Panics
/// No port is free.
pub fn answering_by(answer: impl Fn(&str) -> Option<Answer> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept() {
            // A client that hung up needs no answer.
            let Ok(line) = request(&connection) else {
                continue;
            };
            match answer(&line) {
                Some(answer) => drop(answer.write(&mut &connection)),
                None => held.push(connection),
            }
        }
    });
    format!("http://{address}")
}

/// Reads a request to its end. Returns its first line.
fn request(connection: &TcpStream) -> io::Result<String> {
    let mut reader = BufReader::new(connection);
    let mut first = String::new();
    reader.read_line(&mut first)?;
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
    Ok(first)
}
