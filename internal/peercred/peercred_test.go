package peercred_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/writ-mesh/writ/internal/peercred"
)

// pair is a connection between this process and itself.
func pair(t *testing.T, network, addr string) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close(); _ = client.Close() })
	return server, client
}

func TestCallerIsWhoTheKernelSays(t *testing.T) {
	server, _ := pair(t, "unix", filepath.Join(t.TempDir(), "s"))
	conn, info, err := peercred.Credentials().ServerHandshake(server)
	if err != nil {
		t.Fatal(err)
	}
	if conn != server {
		t.Error("the connection was wrapped")
	}
	if err := credentials.CheckSecurityLevel(info, credentials.PrivacyAndIntegrity); err != nil {
		t.Error(err)
	}
	got, ok := peercred.FromContext(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info}))
	want := peercred.Cred{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if !ok || got != want {
		t.Errorf("got %+v, %v, want %+v", got, ok, want)
	}
}

func TestOnlyUnixSockets(t *testing.T) {
	server, client := pair(t, "tcp", "127.0.0.1:0")
	if _, _, err := peercred.Credentials().ServerHandshake(server); err == nil {
		t.Error("a TCP connection was taken")
	}
	if _, _, err := peercred.Credentials().ClientHandshake(t.Context(), "", client); err == nil {
		t.Error("it serves a client")
	}
}

func TestNobodyInContext(t *testing.T) {
	for name, ctx := range map[string]context.Context{
		"no peer":          t.Context(),
		"no auth info":     peer.NewContext(t.Context(), &peer.Peer{}),
		"another protocol": peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{}}),
	} {
		if c, ok := peercred.FromContext(ctx); ok {
			t.Errorf("%s: %+v", name, c)
		}
	}
}
