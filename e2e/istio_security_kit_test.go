package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// workloadIn writes a LocalWorkload of any namespace; ports are "name: port: app".
func workloadIn(namespace, name, labels string, ports ...string) string {
	var list []string
	for _, p := range ports {
		part := strings.SplitN(p, ":", 3)
		list = append(list, fmt.Sprintf("{name: %s, port: %s, app: %s}", part[0], part[1], part[2]))
	}
	return fmt.Sprintf(`---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: %s, namespace: %s, labels: {%s}}
spec: {serviceAccount: %s, ports: [%s]}
`, name, namespace, labels, name, strings.Join(list, ", "))
}

// raw sends a request byte for byte, without any cleaning of path or headers: to
// proxy in absolute form, or, with an empty proxy, to the host itself.
func raw(proxy, method, target string, headers ...string) answer {
	scheme, rest, _ := strings.Cut(target, "://")
	host, path, _ := strings.Cut(rest, "/")
	path = "/" + path
	to := host
	if proxy != "" {
		to, path = strings.TrimPrefix(proxy, "http://"), scheme+"://"+host+path
	}
	conn, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return answer{err: err}
	}
	defer conn.Close()
	return rawOn(conn, host, method, path, headers...)
}

// rawOn sends a request over conn; path is the request target as it is to be.
func rawOn(conn net.Conn, host, method, path string, headers ...string) answer {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return answer{err: err}
	}
	lines := []string{method + " " + path + " HTTP/1.1"}
	own := false
	for _, h := range headers {
		own = own || strings.HasPrefix(strings.ToLower(h), "host:")
	}
	if !own {
		lines = append(lines, "Host: "+host)
	}
	lines = append(append(lines, headers...), "Connection: close", "", "")
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")); err != nil {
		return answer{err: err}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body), proto: resp.Proto, err: err}
}

// rawFrom sends a request as a workload does, byte for byte.
func (m *mesh) rawFrom(replica, method, target string, headers ...string) answer {
	m.t.Helper()
	return raw(m.proxyOf(replica), method, target, headers...)
}

// connect opens a tunnel from a replica and says whether the echo behind it answers.
func (m *mesh) connect(replica, target string) bool {
	m.t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(m.proxyOf(replica), "http://"), 5*time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return false
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != http.StatusOK {
		return false
	}
	return hello(conn, r)
}

// dialTCP says whether an echo answers on a plain connection.
func dialTCP(target string) bool {
	conn, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	return hello(conn, bufio.NewReader(conn))
}

func hello(conn net.Conn, r *bufio.Reader) bool {
	if conn.SetDeadline(time.Now().Add(5*time.Second)) != nil {
		return false
	}
	if _, err := io.WriteString(conn, "you\n"); err != nil {
		return false
	}
	line, err := r.ReadString('\n')
	return err == nil && line == "echo you\n"
}

// waitStatus polls a request until it has the status.
func waitStatus(t *testing.T, want int, ask func() answer) {
	t.Helper()
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := ask(); got.status != want {
			return fmt.Errorf("got %s, want %d", got, want)
		}
		return nil
	})
}
