// Package model is pilot's picture of the mesh: configuration and discovered
// services, parsed and checked, and nothing of Envoy. One Mesh is one immutable
// revision; readers (package meshdir) build it, compilers (packages translate
// and security) turn it into xDS resources. A Mesh that exists is valid: every
// reference between its objects resolves.
package model
