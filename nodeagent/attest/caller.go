package attest

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/writ-mesh/writ/internal/peercred"
)

// Caller is what is known about the other end of a unix socket.
type Caller struct {
	// PID is 0 if the process is not visible from this PID namespace.
	PID int32
	// StartTime is when the process was started, in clock ticks since boot; 0 if
	// it had ended when the connection was accepted, or cannot be told.
	StartTime uint64
	UID, GID  uint32
}

// String gives the facts for messages.
func (c Caller) String() string { return fmt.Sprintf("pid=%d uid=%d", c.PID, c.UID) }

type authInfo struct {
	credentials.CommonAuthInfo
	caller Caller
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "attest" }

// Credentials are server-side transport credentials for unix sockets: like
// package peercred's, and the caller's process is pinned as well.
func Credentials() credentials.TransportCredentials { return transport{} }

type transport struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cred, err := peercred.Of(conn)
	if err != nil {
		return nil, nil, err
	}
	info := authInfo{caller: Caller{PID: cred.PID, UID: cred.UID, GID: cred.GID}}
	if uc, ok := conn.(*net.UnixConn); ok && cred.PID > 0 {
		info.caller.StartTime = pin(uc, cred.PID)
	}
	// A unix socket's bytes go through the kernel alone.
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return conn, info, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("attest: server side only")
}

// Info implements credentials.TransportCredentials.
func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "attest"}
}

// Clone implements credentials.TransportCredentials.
func (t transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials.
func (transport) OverrideServerName(string) error { return nil }

// callerFrom returns the caller of a gRPC method on a server with Credentials.
func callerFrom(ctx context.Context) (Caller, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.caller, ok
}
