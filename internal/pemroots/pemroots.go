// Package pemroots makes a pool of a file of PEM certificates: the roots that a
// client believes in place of those of the system.
//
// A pool that lacks a root of its file would refuse servers without saying why, so
// that a certificate which cannot be read is an error here, and so is a file that
// ends in the middle of one.
package pemroots

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxBytes bounds a file of roots, in bytes: five times what the roots of a system
// take.
const maxBytes = 1 << 20

// Load makes a pool of the certificates in a file. The error names the file.
func Load(path string) (*x509.CertPool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	pool, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return pool, nil
}

// Parse makes a pool of the certificates in a text. What is between them is passed
// over, other kinds of PEM blocks too.
func Parse(text []byte) (*x509.CertPool, error) {
	if len(text) > maxBytes {
		return nil, fmt.Errorf("more than %d bytes are too many for a file of roots", maxBytes)
	}
	pool, n := x509.NewCertPool(), 0
	begun := bytes.Count(text, []byte("-----BEGIN CERTIFICATE-----"))
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", n, err)
		}
		pool.AddCert(cert)
	}
	switch {
	case n < begun: // Decode passes over what it cannot read, wherever it is
		return nil, fmt.Errorf("one of %d certificates is damaged or cut off", begun)
	case n == 0:
		return nil, errors.New("no PEM certificate in it")
	}
	return pool, nil
}
