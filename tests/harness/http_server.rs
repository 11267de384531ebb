//! An HTTP server whose answers are up to the test, down to their bytes.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Limit of a request.
const REQUEST_BYTES_MAX: usize = 8_192;

/// Serves HTTP on loopback until the runtime ends, one request a connection. `answer` makes the whole answer, from the
/// status line on, for the path of the request. Returns the URL without a path.
///
/// # Panics
/// If no port is free.
pub async fn serve_http(answer: impl Fn(&str) -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("a bound address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; REQUEST_BYTES_MAX];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let answer = answer(request.split(' ').nth(1).unwrap_or_default());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}
