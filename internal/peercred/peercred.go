// Package peercred tells a gRPC server who is at the other end of a unix socket,
// in the kernel's words (SO_PEERCRED, unix(7)) and not in the caller's.
package peercred

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Cred is what the kernel recorded when the caller connected.
type Cred struct {
	// PID is 0 if the caller's process is not visible from this one's PID
	// namespace.
	PID      int32
	UID, GID uint32
}

type authInfo struct {
	credentials.CommonAuthInfo
	cred Cred
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "peercred" }

// Credentials are server-side transport credentials for unix sockets: no
// encryption, the caller known by peer credentials. A connection over anything
// else is refused.
func Credentials() credentials.TransportCredentials { return transport{} }

type transport struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cred, err := Of(conn)
	if err != nil {
		return nil, nil, err
	}
	info := authInfo{cred: cred}
	// The kernel carries a unix socket's bytes from process to process; nobody
	// else can read or change them.
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return conn, info, nil
}

// ClientHandshake implements credentials.TransportCredentials; clients use
// insecure credentials on a unix socket.
func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peercred: server side only")
}

// Info implements credentials.TransportCredentials.
func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (t transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials.
func (transport) OverrideServerName(string) error { return nil }

// Of returns the peer credentials of a unix socket connection.
func Of(conn net.Conn) (Cred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return Cred{}, fmt.Errorf("peercred: %s is no unix socket", conn.RemoteAddr().Network())
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Cred{}, fmt.Errorf("peercred: %w", err)
	}
	var u *unix.Ucred
	var uerr error
	if err := raw.Control(func(fd uintptr) { u, uerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return Cred{}, fmt.Errorf("peercred: %w", err)
	}
	if uerr != nil {
		return Cred{}, fmt.Errorf("peercred: %w", uerr)
	}
	return Cred{PID: u.Pid, UID: u.Uid, GID: u.Gid}, nil
}

// FromContext returns the credentials of the caller of a gRPC method.
func FromContext(ctx context.Context) (Cred, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Cred{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.cred, ok
}
