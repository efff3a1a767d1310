// Package e2e tests whole meshes: `writ up` with real Envoys, real services and
// real programs, looked at from outside as a user would.
package e2e
