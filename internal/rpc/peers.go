package rpc

import (
	"context"
	"crypto/x509"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// Peers are the open connections of a process, each with the certificates of its
// other end, so that those can be closed that may not go on. It is safe for
// concurrent use; the zero Peers is ready.
type Peers struct {
	mu   sync.Mutex
	open map[net.Conn][]*x509.Certificate
}

// Track makes transport credentials whose connections p knows as long as they are
// open. admit, which may be nil, is asked about the other end's chain, leaf first,
// once p knows the connection, so that nothing slips through between the handshake
// and a call of Close; an error ends the connection.
func (p *Peers) Track(creds credentials.TransportCredentials, admit func(chain []*x509.Certificate) error) credentials.TransportCredentials {
	if admit == nil {
		admit = func([]*x509.Certificate) error { return nil }
	}
	return tracked{creds, p, admit}
}

// Close closes the connections whose other end's chain stop is true for, and tells
// how many there were. The chain is empty if the other end has no certificate.
// Whoever uses such a connection hears of it; its streams break off.
func (p *Peers) Close(stop func(chain []*x509.Certificate) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for conn, chain := range p.open {
		if stop(chain) {
			n++
			delete(p.open, conn)
			_ = conn.Close()
		}
	}
	return n
}

func (p *Peers) add(conn net.Conn, chain []*x509.Certificate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = make(map[net.Conn][]*x509.Certificate)
	}
	p.open[conn] = chain
}

func (p *Peers) remove(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, conn)
}

// tracked makes the connections known to a Peers.
type tracked struct {
	credentials.TransportCredentials

	peers *Peers
	admit func([]*x509.Certificate) error
}

// ClientHandshake implements credentials.TransportCredentials.
func (t tracked) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	return t.known(raw, conn, info, err)
}

// ServerHandshake implements credentials.TransportCredentials.
func (t tracked) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	return t.known(raw, conn, info, err)
}

func (t tracked) known(raw, conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		return nil, nil, err
	}
	var chain []*x509.Certificate
	if tls, ok := info.(credentials.TLSInfo); ok {
		chain = tls.State.PeerCertificates
	}
	t.peers.add(raw, chain)
	known := &connection{Conn: conn, raw: raw, peers: t.peers}
	if err := t.admit(chain); err != nil {
		_ = known.Close()
		return nil, nil, err
	}
	return known, info, nil
}

// Clone implements credentials.TransportCredentials.
func (t tracked) Clone() credentials.TransportCredentials {
	return tracked{t.TransportCredentials.Clone(), t.peers, t.admit}
}

// connection forgets itself when it is closed.
type connection struct {
	net.Conn

	raw   net.Conn
	peers *Peers
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.peers.remove(c.raw)
	return c.Conn.Close()
}
