package fetch

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestAnswersAreNotTold: no error has in it what a server said.
func TestAnswersAreNotTold(t *testing.T) {
	const secret = "sesame"
	says := func(text string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(conn, text)
				if tcp, ok := conn.(*net.TCPConn); ok {
					_ = tcp.CloseWrite()
				}
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}
		}()
		return l.Addr().String()
	}
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	for name, uri := range map[string]string{
		"no HTTP":        "http://" + says("SSH-2.0-"+secret+"\r\n"),
		"a status":       "http://" + says("HTTP/1.1 "+secret+"\r\n\r\n"),
		"a header":       "http://" + says("HTTP/1.1 200 OK\r\n"+secret+"\r\n\r\n"),
		"a place":        "http://" + says("HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://["+secret+"\r\n\r\n"),
		"a coding":       "http://" + says("HTTP/1.1 200 OK\r\nTransfer-Encoding: "+secret+"\r\n\r\n"),
		"a chunk":        "http://" + says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+secret+"\r\n"),
		"no TLS":         "https://" + says(secret+"\r\n"),
		"plain HTTP":     "https://" + says("HTTP/1.1 200 OK\r\n"+secret+": 1\r\n\r\n"),
		"a certificate":  secure.URL,
		"cut off":        "http://" + says(""),
		"cut off by TLS": "https://" + says(""),
	} {
		_, err := Guard{}.Get(t.Context(), Request{URL: uri, Timeout: 20 * time.Second, Redirects: 3, MaxBody: 100})
		if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "malformed") || strings.Contains(err.Error(), "x509") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMetadata: clouds have it at other addresses than link-local ones too.
func TestMetadata(t *testing.T) {
	for _, uri := range []string{"http://[fd00:ec2::254]/", "http://168.63.129.16/", "http://100.100.100.200/", "http://[::ffff:100.100.100.200]/", "http://192.0.0.192/", "http://[fd20:ce::254]/"} {
		_, err := Guard{}.Get(t.Context(), Request{URL: uri, Timeout: 20 * time.Second})
		if err == nil || !strings.Contains(err.Error(), "metadata") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}
